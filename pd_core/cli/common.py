"""Parts shared by the commands: the job, the tracking store, and printing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Self

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console, RichCast
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pd_core.core.config import Device
from pd_core.core.errors import BadParams, UnknownName
from pd_core.core.hooks import NO_HOOKS, OnProgress
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import experiment, protocols
from pd_core.pipeline.code_hash import CODE
from pd_core.pipeline.settings import Settings, compute_with, load_settings
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job, output
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.registry import Version
    from pd_core.mlops.registry.register import Registered
    from pd_core.mlops.tracking.recorder import StageRun

Student = Annotated[
    str,
    typer.Argument(
        help="Data set, optionally with /<version> or @<alias>, or directory of a student.",
        show_default=False,
    ),
]
StudentWeights = Annotated[
    str | None,
    typer.Option(
        help="Weights of the student's CLIP, for a directory of the stage student: file, or "
        "tag of open_clip (default: embedded).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Setting:
    """A job with its profile, repository and settings; `on_progress` is called in its stages."""

    job: Job
    profile: str
    root: Path  # of the repository
    settings: Settings
    protocol: Protocol | None = None  # of `protocols/`; None for the profile's own pipeline
    on_progress: OnProgress = NO_HOOKS.on_progress

    @property
    def code(self) -> Path:
        """Folder of the hashes of the code."""
        return (DATA if self.protocol is None else protocols.RESULTS) / CODE

    def label(self, stage: str) -> str:
        """Return the name of the data set in records and messages."""
        name = output(self.job, stage).stem
        return name if self.protocol is None else f"{self.protocol}/{name}"

    def open_store(self) -> str:
        """Open the profile's tracking store and return its address."""
        from pd_core.mlops import tracking

        return tracking.open_store(self.root, self.settings.mlflow_tracking_uri)


def setting_of(
    name: str, seed: int | None = None, source: str | None = None, protocol: Protocol | None = None
) -> Setting:
    """Return the job of a data set and its surroundings.

    Args:
        name: of the data set.
        seed: instead of `run.seed`; outputs then go to separate folders.
        source: data set whose teacher is used, if another one.
        protocol: one of `protocols/params.yaml`, which then overrides numbers and names the source.

    Raises:
        UnknownName: there is no such data set.
        BadParams: a source is given for a protocol that has its own.
    """
    if protocol is None:
        return _setting_in(load_params(PARAMS), name, seed, source)
    if source is not None:
        file = protocols.FOLDER / PARAMS
        raise BadParams(f"--source {source}: {file} names the source; leave it out")
    rules, profile = protocols.load_protocols(protocols.FOLDER)
    settings = load_settings()
    shared = jobs.shared(profile, name, seed, settings.device, settings.data_root)
    job = protocols.job(rules, protocol, rules.for_dataset(profile, protocol, name), **shared)
    return Setting(job, profile.profile.name, Path(profile.profile.root), settings, protocol)


def settings_of(params: Params, names: Iterable[str]) -> dict[str, Setting]:
    """Return the jobs of several data sets and their surroundings, by name.

    Raises:
        UnknownName: there is no such data set.
    """
    return {name: _setting_in(params, name) for name in names}


def _setting_in(
    params: Params, name: str, seed: int | None = None, source: str | None = None
) -> Setting:
    settings = load_settings()
    experiment.link_ignored(Path(params.profile.root) / DATA / "raw")
    compute_with(params.run.threads)  # device `auto` imports torch
    shared = jobs.shared(params, name, seed, settings.device, settings.data_root)
    suffix = "" if seed is None else f"-{seed}"
    job = jobs.job_of(params, name, suffix=suffix, source=source, **shared)
    return Setting(job, params.profile.name, Path(params.profile.root), settings)


def device_of(given: str | None) -> str:
    """Return the device of an option, or else of PD_DEVICE, or else `auto`, as torch's name.

    Raises:
        BadParams: there is no such device here.
    """
    wanted = given or load_settings().device or "auto"
    try:
        name = jobs.resolved(TypeAdapter(Device).validate_python(wanted))
    except ValidationError:
        choices = "auto, cpu, mps, cuda or cuda:<number>"
        raise BadParams(f"device '{wanted}' is unknown; give {choices}") from None
    import torch

    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # without a driver, or without its build
        reason = str(error).partition("\n")[0].rstrip(".")
        raise BadParams(f"device '{name}' is not there ({reason}); give auto or cpu") from None
    return name


def open_store() -> str:
    """Open the tracking store of the profile in this folder and return its address."""
    from pd_core.mlops import tracking

    params, settings = load_params(PARAMS), load_settings()
    return tracking.open_store(Path(params.profile.root), settings.mlflow_tracking_uri)


def version_of(store: str, reference: str) -> Version:
    """Find the version that a reference names: of a name alone the champion, or else the newest."""
    from pd_core.mlops import registry

    try:
        return registry.find(store, reference, default=registry.CHAMPION)
    except UnknownName:
        version = registry.find(store, reference)  # an unknown model is refused here
        note(f"'{version.name}' has no champion; the newest version is used, {version.number}")
        return version


@contextmanager
def student_folder(model: str, weights: str | None = None) -> Iterator[Path]:
    """Yield the directory of a student: the one that is named, or a copy of a registered version.

    Args:
        model: directory, or reference of a version: of a name alone the champion, or the newest.
        weights: of the student's CLIP, which a registered version does not need.

    Raises:
        BadParams: weights are given for a registered version.
    """
    if Path(model).is_dir():
        yield Path(model)
        return
    if weights is not None:
        raise BadParams(f"--weights is for a directory, and '{model}' is none; leave it out")
    from pd_core.mlops import registry

    store = open_store()
    version = version_of(store, model)
    with TemporaryDirectory() as folder:
        yield registry.fetch(store, version, Path(folder)) / registry.BUNDLE


def register(setting: Setting, run_id: str | None = None) -> Registered:
    """Register a job's student, and log it to a run (default: a new one)."""
    from pd_core.mlops.registry import register as registration

    return registration.register_student(
        setting.open_store(),
        setting.job,
        profile=setting.profile,
        experiment=setting.settings.mlflow_experiment,
        run_id=run_id,
        on_note=note,
    )


def print_json(value: object) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line of the result."""
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


def print_table(table: RichCast | Table) -> None:
    """Print a table, as wide as the terminal; in files and pipes as wide as its cells."""
    console = Console()
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


def note(text: str) -> None:
    """Print a note to stderr."""
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


class Reporter:
    """Progress of long work: a bar on a terminal, plain lines elsewhere, and the MLflow run."""

    def __init__(
        self,
        title: str,
        unit: str = "steps",
        *,
        record: StageRun | None = None,
        also: OnProgress = NO_HOOKS.on_progress,
    ) -> None:
        """Set the title and the unit; nothing is shown before the first `progress`.

        Progress whose total is known goes to the run `record` and the callback `also` as well.
        """
        self._run = record
        self._also = also
        self._title = title
        self._unit = unit
        self._bar: Progress | None = None
        self._next_line = 0.0
        self._metrics = ""
        self._state: tuple[int, int | None] = (0, 0)
        self._written: tuple[int, int | None] | None = None

    def __enter__(self) -> Self:
        """Show a bar on a terminal, or lines at intervals elsewhere."""
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._bar.add_task(self._title, total=None, metrics="")
        if self._run is None:  # a stage, which has one, prints a line at once
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove the bar, or print the last line."""
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._written not in (None, self._state):
            self._write()

    def progress(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` steps are done; None if their number is not known."""
        if total is not None:
            self._also(done, total)
            if self._run is not None:
                self._run.progress(done, total)
        self._state = done, total
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total, metrics=self._metrics)
        elif time.monotonic() >= self._next_line:
            self._write()

    def loss(self, step: int, mean: float) -> None:
        """Record the mean loss of the steps up to this one."""
        if self._run is not None:
            self._run.loss(step, mean)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show the metrics of an epoch."""
        if self._run is not None:
            self._run.epoch(epoch, metrics)
        shown = {key: value for key, value in metrics.items() if key != "lr"}
        self._metrics = " ".join(f"{key} {value:.3g}" for key, value in shown.items())

    def _write(self) -> None:
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._written = done, total = self._state
        steps = f"{done}" if total is None else f"{done}/{total}"
        sys.stderr.write(f"{self._title}: {steps} {self._unit} {self._metrics}\n")
        sys.stderr.flush()
