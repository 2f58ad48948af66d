"""The page of a profile: its results beside the paper's, and their provenance; HTML and Markdown.

The HTML file needs nothing besides: no script, no font, no network.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import read_json
from pd_core.core.errors import PdError
from pd_core.core.options import BASELINE
from pd_core.core.scores import mark
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.provenance import ABSENT, commit_tags, content_hash, read_lock, version
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import PARAMS
from pd_core.reporting import page_dataset
from pd_core.reporting.page_dataset import AT_A_TIME, DatasetPage
from pd_core.reporting.page_models import Speed, read_speed
from pd_core.reporting.page_protocols import Seeds, read_summary
from pd_core.reporting.report import summarise
from pd_core.reporting.results import (
    Evaluation,
    Scores,
    Summary,
    read_evaluations,
    read_titles,
)

ANSWERS = "answers"  # folder beside the page: cache of the models' predictions
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
PACKAGES = ("promptkd", "torch", "torchvision", "open_clip_torch", "numpy", "dvc", "mlflow")
AVERAGE = "average"
SAME, OTHER, NOT_HERE, NOT_RUN = "as recorded", "not as recorded", "not here", "not run"

PUBLISHED = ("student", "teacher", "zero_shot_student")
"""The models whose accuracy the paper has; its zero-shot CLIP is the student's."""

_LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Beside:
    """The accuracies of one data set, here and in the paper: base, novel and hm, or accuracy."""

    dataset: str  # or `average`
    ours: dict[str, float] | None  # percent; None if it was not run
    paper: dict[str, float]  # percent
    difference: dict[str, float] | None  # ours less the paper's, in points
    spread: dict[str, float] | None = None  # standard deviation of ours, of several seeds
    worse: bool = False  # ours is a student that is worse than the zero-shot one


@dataclass(frozen=True)
class Output:
    """An output of a stage as `dvc.lock` has it, and whether it still is so."""

    path: str
    md5: str
    state: str


@dataclass(frozen=True)
class Origin:
    """Provenance of the numbers."""

    commit: str  # of git; "none" outside of a repository
    changed: bool  # files of that commit were changed
    versions: dict[str, str]  # by package, and Python's
    params: str  # text of `params.yaml`
    outputs: tuple[Output, ...]  # of the stages in `dvc.lock`


@dataclass(frozen=True)
class Page:
    """Content of the page."""

    profile: str
    seed: int
    datasets: tuple[str, ...]  # all of the profile, run or not
    titles: dict[str, str]  # readable names, also of other profiles' data sets
    summary: dict[str, Any]  # of the data sets that were run, see `report.summarise`
    seeds: Seeds  # results by protocol over several seeds
    beside: dict[str, tuple[Beside, ...]]  # by model, from base to novel classes
    beside_seeds: tuple[int, ...]  # of ours there: several, or the one of the runs
    across: dict[Protocol, dict[str, tuple[Beside, ...]]]  # on other data sets than the teacher's
    pages: tuple[DatasetPage, ...]  # the data sets that were run
    speed: dict[str, Speed]  # by model; empty if nothing was measured
    origin: Origin
    notes: tuple[str, ...] = ()  # data sets without a section, and why


def evaluated_jobs(jobs: Mapping[str, Job]) -> list[Job]:
    """Return the jobs that were evaluated."""
    return [job for job in jobs.values() if (job.evaluation / "metrics.json").is_file()]


def gather(
    jobs: Mapping[str, Job],
    folder: Path,
    *,
    profile: str,
    root: Path,
    protocols: Path,
    baselines: Sequence[str] = (),
) -> Page:
    """Gather the page of a profile; what was not run is no error.

    Args:
        jobs: by data set, all of the profile.
        folder: output folder, with earlier measurements and cached predictions.
        profile: its name.
        root: of the repository.
        protocols: folder of the report of all protocols and seeds, if there is one.
        baselines: data sets that may have the baseline `tuned_student`.

    Raises:
        PdError: results are corrupt.
    """
    first = next(iter(jobs.values()))
    evaluated = evaluated_jobs(jobs)
    names = [job.evaluation.name for job in evaluated]
    evaluations = first.evaluation.parent
    tuned = [name for name in baselines if (evaluations / BASELINE / f"{name}.json").is_file()]
    estimated = [job.evaluation.name for job in evaluated if job.cross_validation.is_file()]
    rows = read_evaluations(evaluations, names, tuned, estimated) if names else {}
    summary = summarise(profile, rows)
    several = read_summary(protocols)
    # several seeds stand beside the paper's if they were run wherever the single one was
    ours, seeds = several.protocols.get(Protocol.BASE_TO_NOVEL), several.seeds
    if ours is None or not set(summary["datasets"]) <= set(ours["datasets"]):
        ours, seeds = summary, (first.seed,)
    with ThreadPoolExecutor(AT_A_TIME) as pool:  # small models do not keep the cores busy alone
        sections = list(pool.map(lambda job: _section(job, folder / ANSWERS), evaluated))
    titles = {name: dataset_spec(name).title for name in dataset_names()}
    return Page(
        profile,
        first.seed,
        tuple(jobs),
        titles | read_titles(first.prepared.parent),
        summary,
        several,
        beside(ours, list(jobs)),
        seeds,
        across(several.protocols, several.source, list(jobs)),
        tuple(section for section in sections if isinstance(section, DatasetPage)),
        read_speed(folder),
        _origin(list(jobs), root),
        tuple(note for note in sections if isinstance(note, str)),
    )


def _section(job: Job, folder: Path) -> DatasetPage | str:
    """Gather a data set, or return a note if its preparation is not here."""
    try:
        return page_dataset.gather(job, folder)
    except PdError as error:
        return f"{job.evaluation.name} has no section: {masked(str(error))}"


@cache
def paper() -> dict[str, Any]:
    """Read the paper's numbers."""
    content: dict[str, Any] = read_json(Path(__file__).with_name("paper.json"))
    return content


def beside(
    summary: Summary, datasets: Sequence[str], protocol: Protocol = Protocol.BASE_TO_NOVEL
) -> dict[str, tuple[Beside, ...]]:
    """Put our accuracies beside the paper's.

    Args:
        summary: `datasets` and `average`, as of `report.summarise`, of what was run.
        datasets: all data sets, run or not.
        protocol: which of the paper's tables.

    Returns:
        By model, a row for each of `datasets` that the paper has. The paper's average is of all its
        data sets, so ours stands beside it only if exactly these were run.
    """
    published = paper()[protocol]
    shared = [name for name in datasets if name in published]
    if not shared:
        return {}
    rows = {**summary["datasets"]}
    if set(rows) == set(published) - {AVERAGE}:
        rows[AVERAGE] = summary[AVERAGE]
    return {
        model: tuple(
            _beside(name, model, rows.get(name, {}), published[name][model])
            for name in (*shared, AVERAGE)
            if model in published[name]
        )
        for model in PUBLISHED
    }


def across(
    protocols: Mapping[Protocol, Summary], source: str | None, datasets: Sequence[str]
) -> dict[Protocol, dict[str, tuple[Beside, ...]]]:
    """Put our accuracies on other data sets than the teacher's beside the paper's.

    Args:
        protocols: results by protocol.
        source: the data set that its teacher was tuned on.
        datasets: of the profile; without the paper's source among them there is nothing to compare.

    Returns:
        By protocol and model, a row for each of the paper's targets.
    """
    paper_source = paper()["source_dataset"]
    if paper_source not in datasets:
        return {}
    nothing: Summary = {"datasets": {}, AVERAGE: {}}
    measured = protocols if source == paper_source else {}
    return {
        protocol: beside(measured.get(protocol, nothing), targets(protocol), protocol)
        for protocol in Protocol
        if protocol.has_source
    }


def targets(protocol: Protocol) -> list[str]:
    """Return the data sets that the paper has in a protocol."""
    return [name for name in paper()[protocol] if name != AVERAGE]


def _beside(name: str, model: str, row: Evaluation, published: dict[str, float]) -> Beside:
    """Compare the numbers that the paper has; none are ours where other ones were measured."""
    scores: Scores | None = row.get(model)
    if scores is None or not set(published) <= set(scores):
        return Beside(name, None, published, None)
    ours = {key: scores[key] for key in published}
    difference = {key: round(ours[key] - published[key], 2) for key in published}
    spread = {key: scores[f"{key}_std"] for key in published if f"{key}_std" in scores}
    worse = bool(mark(model, row))
    return Beside(name, ours, published, difference, spread or None, worse)


def _origin(datasets: Sequence[str], root: Path) -> Origin:
    """Return the provenance of the profile in the current folder."""
    tags = commit_tags(root)
    stages = read_lock(_LOCK.read_bytes(), f"'{_LOCK}'") if _LOCK.is_file() else {}
    outputs = [
        (out["path"], out["md5"])
        for name in datasets
        for stage in STAGES
        for out in stages.get(f"{stage}@{name}", {}).get("outs", [])
    ]
    states = {path: content_hash(Path(path)) for path, _ in outputs}
    return Origin(
        tags["git_commit"],
        tags.get("git_dirty") == "true",
        {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        masked(PARAMS.read_text(encoding="utf-8")),
        tuple(
            Output(path, md5, {md5: SAME, ABSENT: NOT_HERE}.get(states[path], OTHER))
            for path, md5 in outputs
        ),
    )
