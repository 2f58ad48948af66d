"""What the verbs of the command line share: the job that they are about, the store, and words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pd_core.core.errors import BadParams
from pd_core.data.catalog import fingerprint
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import protocols as protocols_layout
from pd_core.pipeline.protocols import FOLDER, RESULTS, load_protocols
from pd_core.pipeline.settings import Settings, load_settings
from pd_core.pipeline.stages.layout import Job, output
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

if TYPE_CHECKING:
    from pd_core.mlops.registry.register import Registered


@dataclass(frozen=True)
class Setting:
    """A job, and what surrounds it: the profile, the repository, the environment."""

    job: Job
    profile: str
    root: Path  # of the repository
    settings: Settings
    protocol: Protocol | None = None  # of `protocols/`; None for the profile's own pipeline

    @property
    def code(self) -> Path:
        """Folder of the hashes of the code."""
        return (DATA if self.protocol is None else RESULTS) / "code"

    def label(self, stage: str) -> str:
        """Return what records and messages call the data set."""
        name = output(self.job, stage).name
        return name if self.protocol is None else f"{self.protocol}/{name}"


def setting_of(
    name: str,
    seed: int | None = None,
    source: str | None = None,
    protocol: Protocol | None = None,
) -> Setting:
    """Put together what a stage of a data set needs.

    Args:
        name: of the data set.
        seed: instead of `run.seed`; outputs then go to folders of their own.
        source: the data set whose teacher is used, if it is another one.
        protocol: one of `protocols/params.yaml`, which then says more of the numbers, and names the
            source; None for what `params.yaml` says.

    Raises:
        UnknownName: there is no such data set.
        BadParams: a source is given for a protocol that has its own.
    """
    if protocol is not None:
        if source is not None:
            raise BadParams(f"--source {source}: {FOLDER / PARAMS} names the source; leave it out")
        return _setting_of_protocol(protocol, name, seed)
    return _setting_in(load_params(PARAMS), name, seed, source)


def settings_of(params: Params, names: Iterable[str]) -> dict[str, Setting]:
    """Put together what the stages of several data sets need, by their names.

    Raises:
        UnknownName: there is no such data set.
    """
    return {name: _setting_in(params, name) for name in names}


def _setting_in(
    params: Params, name: str, seed: int | None = None, source: str | None = None
) -> Setting:
    mine = params.for_dataset(name)
    if source is not None:
        params.for_dataset(source)  # refuses an unknown one
    settings = load_settings()
    root = Path(params.profile.root)
    job = Job.at(
        DATA,
        mine,
        seed=params.run.seed if seed is None else seed,
        device=settings.device or params.run.device,
        data_root=settings.data_root or root / DATA / "raw",
        fingerprint=fingerprint.path_of(name, root),
        checkpoints=DATA / "checkpoints",
        features=DATA / "features",
        suffix="" if seed is None else f"-{seed}",
        source=source,
    )
    return Setting(job, params.profile.name, root, settings)


def _setting_of_protocol(protocol: Protocol, name: str, seed: int | None) -> Setting:
    params, profile = load_protocols(FOLDER)
    settings = load_settings()
    root = Path(profile.profile.root)
    job = protocols_layout.job(
        params,
        protocol,
        params.for_dataset(profile, protocol, name),
        seed=profile.run.seed if seed is None else seed,
        device=settings.device or profile.run.device,
        data_root=settings.data_root or root / DATA / "raw",
        fingerprint=fingerprint.path_of(name, root),
        features=DATA / "features",
    )
    return Setting(job, profile.profile.name, root, settings, protocol)


def open_store() -> str:
    """Open MLflow's store of the profile in this folder."""
    from pd_core.mlops import tracking

    params, settings = load_params(PARAMS), load_settings()
    return tracking.open_store(Path(params.profile.root), settings.mlflow_tracking_uri)


def register(setting: Setting, run_id: str | None = None) -> Registered:
    """Register the student that a job's stages made.

    Args:
        setting: the job and what surrounds it.
        run_id: the run to log to; None for a new one.
    """
    from pd_core.mlops import tracking
    from pd_core.mlops.registry import register as registration

    return registration.register_student(
        tracking.open_store(setting.root, setting.settings.mlflow_tracking_uri),
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


def note(text: str) -> None:
    """Print a line beside the result, on stderr."""
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)
