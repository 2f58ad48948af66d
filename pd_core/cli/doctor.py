"""`promptkd doctor`: checks of the environment, the settings, the data and the servers."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Annotated

import typer

from pd_core.cli.common import AsJson, print_json
from pd_core.cli.rehearse import duration, show, slowest
from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.atomic import existing, readable
from pd_core.core.config import ClipConfig
from pd_core.core.errors import PdError, missing
from pd_core.data.acquire.sources import source_names, weight_names
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, dataset_spec, own_spec
from pd_core.pipeline.provenance import ABSENT, git, version
from pd_core.pipeline.redaction import env_file, masked, variables
from pd_core.pipeline.settings import Settings, load_settings, variable_names
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetParams, Params, load_params
from pd_core.rehearsal.record import read

SECONDS = 60.0
"""Time limit of a check: importing torch from a cold network disk takes half of it."""

ENOUGH_SPACE = 5 * 2**30
"""Bytes for two checkpoints of a fully tuned ViT-B/16 (0.7 GB each with momentum), the student, its
copy in DVC's cache (2 GB in all), and a second data set."""

LEAST_SPACE = 2**30
"""Bytes below which such a checkpoint and its successor do not fit beside each other."""

_PACKAGES = (
    "torch", "torchvision", "open-clip-torch", "safetensors", "numpy", "pillow", "dvc", "dvc-s3",
    "mlflow", "prefect", "fastapi", "boto3", "pydantic", "pydantic-settings",
)  # fmt: skip
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
_SHIPPED = Path(__file__).parents[1] / "models" / "weights"
_FILES = (".pt", ".pth", ".bin", ".safetensors")
_OTHERS_MAY_READ = 0o077


class Status(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"  # works, but not completely or not as intended
    WRONG = "wrong"  # the profile needs it, and it does not work


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    subject: str
    status: Status
    message: str
    remedy: str = ""


Check = Callable[[], Result | Iterable[Result]]


def ok(subject: str, message: str) -> Result:
    """Return the result of a successful check."""
    return Result(subject, Status.OK, message)


def warning(subject: str, message: str, remedy: str) -> Result:
    """Return the result of a check that found a minor problem."""
    return Result(subject, Status.WARNING, message, remedy)


def wrong(subject: str, message: str, remedy: str) -> Result:
    """Return the result of a check that failed."""
    return Result(subject, Status.WRONG, message, remedy)


def doctor(
    profile: Annotated[
        Path, typer.Option(help="Folder of the profile, such as paper.", file_okay=False)
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Check the environment, settings, data, weights and servers.

    Prints one line per check and, for each problem, what to do; then the estimate of the last
    rehearsal. Secrets are masked. The exit status is 1 if something is wrong.
    """
    if not profile.is_dir():
        raise missing("folder of the profile", profile, "give one with a params.yaml")
    with chdir(profile):
        _examine(as_json=as_json)


def _examine(*, as_json: bool) -> None:
    results = []
    for subject, check in _checks(load_params(PARAMS), load_settings()):
        for result in run_check(subject, check):
            results.append(result)
            if not as_json:
                typer.echo(_line(result))
    if as_json:
        print_json([asdict(result) for result in results])
    elif (record := read(Path())) is not None:
        show(record)
    if any(result.status is Status.WRONG for result in results):
        raise typer.Exit(1)


def _line(result: Result) -> str:
    remedy = f"; {result.remedy}" if result.remedy else ""
    text = f"{result.status:<8}{result.subject}: {result.message}{remedy}"
    return " ".join(text.split("\n"))


def _checks(params: Params, given: Settings) -> Iterator[tuple[str, Check]]:
    """Yield the checks by subject."""
    from pd_core.cli import doctor_servers as servers

    root = Path(params.profile.root)
    data_root = given.data_root or root / DATA / "raw"
    datasets = [params.for_dataset(name) for name in params.datasets]
    files = [file for dataset in datasets for file in _weights(dataset)]

    yield "packages", partial(packages, root / "constraints.txt")
    yield "git", repository
    yield "settings", settings
    yield "device", partial(device, given.device or params.run.device)
    yield "data", partial(data, [_spec(dataset) for dataset in datasets], data_root, root)
    yield "weights", partial(weights, files)
    yield "DVC remote", partial(servers.dvc_remote, given)
    yield "mirror", partial(servers.mirror, given)
    yield "MLflow", partial(servers.mlflow, root, given.mlflow_tracking_uri)
    yield "disk space", partial(space, DATA)
    yield "rehearsal", rehearsal


def run_check(subject: str, check: Check, *, seconds: float = SECONDS) -> list[Result]:
    """Run a check in a thread; errors and timeouts become results, and secrets are masked."""
    queue: Queue[list[Result]] = Queue()
    Thread(target=lambda: queue.put(_results(subject, check)), daemon=True).start()
    try:
        results = queue.get(timeout=seconds)
    except Empty:
        late = f"no answer within {seconds:g} seconds"
        results = [wrong(subject, late, "see why it hangs, then start again")]
    return [
        Result(result.subject, result.status, masked(result.message), masked(result.remedy))
        for result in results
    ]


def _results(subject: str, check: Check) -> list[Result]:
    try:
        results = check()
        return [results] if isinstance(results, Result) else list(results)
    except PdError as error:
        text, _, remedy = str(error).partition("; ")
        return [wrong(subject, text, remedy)]
    except Exception as error:  # the other checks have to run all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [wrong(subject, f"the check failed, {reason}", "report this")]


def _spec(params: DatasetParams) -> DatasetSpec:
    own = params.prepare.own
    return own_spec(params.name, own) if own else dataset_spec(params.name)


def _weights(params: DatasetParams) -> Iterator[Path]:
    """Yield the weight files of a data set's models; tags of open_clip are no files."""
    models: tuple[ClipConfig | None, ...] = (params.teacher, params.student, params.tuned_student)
    for model in filter(None, models):
        shipped = _SHIPPED / f"{model.model}.safetensors"
        file = Path(model.weights) if model.weights is not None else shipped
        if file.exists() or (model.weights is not None and file.suffix in _FILES):
            yield file
    further = (teacher.weights for teacher in params.student.further_teachers)
    yield from (Path(file) for file in further if file and Path(file).suffix in _FILES)
    if params.teacher.original is not None:
        yield Path(params.teacher.original.path)


def packages(constraints: Path) -> Result:
    """Compare the installed packages that results depend on with the pinned versions."""
    text = constraints.read_text("utf-8") if constraints.is_file() else ""
    source = "-e ." if constraints.with_name("pyproject.toml").is_file() else "promptkd"
    remedy = f"run `pip install -c constraints.txt {source}`"
    pins = {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in _PIN.findall(text)}
    installed = {name: version(name).partition("+")[0] for name in _PACKAGES}  # no "+cu130"
    if absent := [name for name, number in installed.items() if number == ABSENT]:
        message = f"{', '.join(absent)} not installed"
        return wrong("packages", message, remedy)
    other = [
        f"{name} is {installed[name]}, pinned is {pins[name]}"
        for name in installed
        if installed[name] != pins.get(name, installed[name])
    ]
    if other:
        message = f"{', '.join(other)}: results may differ in the last bits"
        return warning("packages", message, remedy)
    listed = ", ".join(f"{name} {number}" for name, number in installed.items())
    return ok("packages", f"{listed} {'as pinned' if pins else ''}".strip())


def repository() -> Result:
    """Check that git tracks this folder, which DVC and the records of runs need."""
    if git(Path(), "ls-files", "--error-unmatch", str(PARAMS)) is None:
        remedy = "clone it by git, or run `git init && git add --all && git commit -m promptkd`"
        message = f"'{Path.cwd()}' is no git repository, as a ZIP download is none"
        return wrong("git", message, remedy if shutil.which("git") else "install git first")
    commit = git(Path(), "rev-parse", "--short", "HEAD")
    return ok("git", f"commit {commit.decode().strip()}" if commit else "no commit yet")


def settings() -> Iterator[Result]:
    """Check for misspelt variables, a missing data folder and an `.env` that others can read."""
    names = variable_names()
    given = [name.upper() for name in variables() if name.upper().startswith("PD_")]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"write {close[0]}, or remove it" if close else "remove it"
            yield warning("settings", f"{name} is no setting", remedy)
    file = env_file()
    if file.is_file():
        not_ignored = ("ls-files", "--cached", "--others", "--exclude-standard")
        if git(Path(), *not_ignored, "--", str(file)):
            remedy = f"add a line {file.name} to .gitignore"
            yield wrong("settings", f"git does not ignore '{file}'", remedy)
        if file.stat().st_mode & _OTHERS_MAY_READ:
            message = f"other users may read '{file}'"
            yield warning("settings", message, f"run `chmod 600 {file}`")
    root = load_settings().data_root
    if root and not root.is_dir():
        message = f"PD_DATA_ROOT {_origin('PD_DATA_ROOT')}: no folder '{root}'"
        yield wrong("settings", message, "correct it, or make the folder")
    used = [f"{name} {_origin(name)}" for name in names if name in given]
    yield ok("settings", ", ".join(used) or "none set")


def _origin(name: str) -> str:
    """Return the place that sets a variable; the environment has precedence over the file."""
    is_set = name in (variable.upper() for variable in os.environ)
    return "of the environment" if is_set else f"of '{env_file().absolute()}'"


def device(name: str) -> Result:
    """Check that a device is available and has free memory."""
    name = jobs.resolved(name)
    if name == "cpu":
        return ok("device", f"cpu: {os.cpu_count()} cores")
    import torch

    kind, _, number = name.partition(":")
    remedy = "set PD_DEVICE or run.device in params.yaml to one that is there"
    if kind == "mps":
        is_there = torch.backends.mps.is_available()
        return ok("device", name) if is_there else wrong("device", f"{name}: not there", remedy)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu = int(number or 0)
    if gpu >= count:
        gpus = ", ".join(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(count))
        return wrong("device", f"{name}: not there, found {gpus or 'no GPU'}", remedy)
    torch.ones(1, device=name).add(1).item()  # reveals a driver that does not fit
    free, total = (readable(size) for size in torch.cuda.mem_get_info(gpu))
    return ok("device", f"{name}: {torch.cuda.get_device_name(gpu)}, {free} of {total} free")


def data(specs: Sequence[DatasetSpec], data_root: Path, project: Path) -> Iterator[Result]:
    """Check that the files and fingerprints of the data sets are there; no image is read."""
    from pd_core.data.acquire.verify import state_of

    embedded = 0
    for spec in specs:
        path = fingerprint.path_of(spec.name, project)
        subject, folder = f"data {spec.name}", data_root / spec.folder
        state = state_of(spec, data_root)
        if state not in ("embedded", "there"):
            yield wrong(subject, f"{state}: '{folder}'", _how_to_get(spec))
        elif not path.is_file():
            remedy = f"run `promptkd data fingerprint {spec.name}` and commit '{path}'"
            yield wrong(subject, "has no fingerprint", remedy)
        elif (problem := _unreadable(path, spec.name)) is not None:
            yield wrong(subject, *problem)
        elif spec.layout is Layout.EMBEDDED:
            embedded += 1
        elif git(path.parent, "status", "--porcelain", "--", path.name):
            yield warning(subject, "its fingerprint is not committed", f"commit '{path}'")
        else:
            yield ok(subject, f"there, '{folder}', fingerprint too")
    if embedded:
        yield ok("data", f"{embedded} embedded data sets, and their fingerprints")


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.name in source_names():
        return f"run `promptkd data fetch {spec.name}`, or correct PD_DATA_ROOT"
    return "put the images there, or correct PD_DATA_ROOT"


def _unreadable(path: Path, name: str) -> tuple[str, str] | None:
    try:
        fingerprint.read(path, name)
    except PdError as error:
        message, _, remedy = str(error).rpartition(": ")
        return message, remedy
    return None


def weights(files: Iterable[Path]) -> Iterator[Result]:
    """Check that weight files are there, and the checksums of those that ship with the package."""
    good = []
    for file in sorted(set(files)):
        if not file.is_file() or file.stat().st_size == 0:
            fetch = f"run `promptkd weights fetch {file.name}`"
            remedy = fetch if file.name in weight_names() else "copy it there, or correct the path"
            state = "is empty" if file.is_file() else "is not there"
            yield wrong("weights", f"'{file}' {state}", remedy)
            continue
        if (file.parent / SUMS).is_file():
            check_sum(file, what="weights", remedy="restore the file")
        good.append(f"'{file.name}' ({readable(file.stat().st_size)})")
    if good:
        yield ok("weights", ", ".join(good))


def rehearsal() -> Result:
    """Return the time and memory that the last rehearsal of the profile has estimated."""
    record = read(Path())
    if record is None:
        return ok("rehearsal", "none; `promptkd rehearse` estimates time and memory of the run")
    total = record.total
    memory = f"{readable(total.memory)} of memory"
    gpu = f", {readable(total.gpu)} of the GPU's" if total.gpu else ""
    time = f"about {duration(total.seconds)} on {record.device}, one stage after the other"
    return ok("rehearsal", f"{time}; {memory}{gpu}; slowest: {slowest(total)}")


def space(folder: Path) -> Result:
    """Check the free space of a folder's disk; the folder need not exist yet."""
    return space_result(f"'{existing(folder)}'", shutil.disk_usage(existing(folder)).free)


def space_result(place: str, free: int) -> Result:
    """Return the result for a place with so many free bytes."""
    message = f"{readable(free)} free at {place}"
    if free >= ENOUGH_SPACE:
        return ok("disk space", message)
    result = warning if free >= LEAST_SPACE else wrong
    remedy = "make room; `dvc gc --workspace` removes results of earlier parameters"
    return result("disk space", f"{message}, {readable(ENOUGH_SPACE)} are enough", remedy)
