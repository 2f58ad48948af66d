"""Gather the page's content: what stages wrote, the paper's numbers, where all of it is from."""

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
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.provenance import ABSENT, commit_tags, content_hash, read_lock, version
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import PARAMS
from pd_core.reporting.page import dataset
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.models import AT_A_TIME, Speed, read_speed
from pd_core.reporting.protocol_report import Seeds, read_summary
from pd_core.reporting.report import summarise
from pd_core.reporting.results import Scores, Summary, read_evaluations, read_titles

ANSWERS = "answers"  # the folder beside the page

LOCK = Path("dvc.lock")
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
PACKAGES = ("promptkd", "torch", "torchvision", "open_clip_torch", "numpy", "dvc", "mlflow")

SAME, OTHER, NOT_HERE = "as recorded", "not as recorded", "not here"

PUBLISHED = ("student", "teacher", "zero_shot_student")
"""Whose accuracy the paper has; its zero-shot CLIP is the student's."""

AVERAGE = "average"


@dataclass(frozen=True)
class Beside:
    """The accuracies of one data set, here and in the paper.

    Numbers are in percent, by their names: base, novel and hm, or accuracy alone.

    Attributes:
        dataset: its name, or `average`.
        ours: None if it was not run.
        paper: what the paper says.
        difference: ours less the paper's, in points; None if it was not run.
        spread: standard deviation of ours over seeds, in points; None of a single seed.
    """

    dataset: str
    ours: dict[str, float] | None
    paper: dict[str, float]
    difference: dict[str, float] | None
    spread: dict[str, float] | None = None


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage wrote, as `dvc.lock` has it, and whether it still is so."""

    path: str
    md5: str
    state: str


@dataclass(frozen=True)
class Origin:
    """Where numbers come from.

    Attributes:
        commit: of git; "none" outside of a repository.
        changed: whether files of that commit were changed.
        versions: by package, and Python's.
        params: text of `params.yaml`.
        outputs: of the stages that `dvc.lock` knows.
    """

    commit: str
    changed: bool
    versions: dict[str, str]
    params: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        profile: `quickstart` or `paper`.
        seed: of the runs.
        datasets: all of the profile, run or not.
        titles: readable names, also of data sets that are not the profile's.
        summary: what `report.summarise` made of those that were run.
        seeds: what was measured by protocol over several seeds.
        beside: by who, our accuracies from base to novel classes and the paper's.
        beside_seeds: of ours there: several, or the one of the runs.
        across: by protocol and by who, our accuracies on other data sets than the teacher's, and
            the paper's.
        pages: the data sets that were run.
        speed: by who; nobody if nothing was measured.
        origin: where it all comes from.
        notes: what could not be shown of a whole data set, and why.
    """

    profile: str
    seed: int
    datasets: tuple[str, ...]
    titles: dict[str, str]
    summary: dict[str, Any]
    seeds: Seeds
    beside: dict[str, tuple[Beside, ...]]
    beside_seeds: tuple[int, ...]
    across: dict[Protocol, dict[str, tuple[Beside, ...]]]
    pages: tuple[DatasetPage, ...]
    speed: dict[str, Speed]
    origin: Origin
    notes: tuple[str, ...] = ()


def run(jobs: Mapping[str, Job]) -> list[Job]:
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
        jobs: by the names of all data sets of the profile.
        folder: where the page goes, and what was measured and answered before is.
        profile: its name.
        root: of the repository.
        protocols: folder of the report of all protocols and seeds, if there is one.
        baselines: data sets that may have the baseline `tuned_student`.

    Raises:
        PdError: results are damaged.
    """
    first = next(iter(jobs.values()))
    evaluated = run(jobs)
    names = [job.evaluation.name for job in evaluated]
    evaluations = first.evaluation.parent
    having = [name for name in baselines if (evaluations / BASELINE / f"{name}.json").is_file()]
    estimated = [job.evaluation.name for job in evaluated if job.cross_validation.is_file()]
    found = read_evaluations(evaluations, names, having, estimated) if names else {}
    summary = summarise(profile, found)
    several = read_summary(protocols)
    # several seeds stand beside the paper's if they were run wherever the single one was
    ours, seeds = several.protocols.get(Protocol.BASE_TO_NOVEL), several.seeds
    if ours is None or not set(summary["datasets"]) <= set(ours["datasets"]):
        ours, seeds = summary, (first.seed,)
    pages, notes = _pages(evaluated, folder / ANSWERS)
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
        pages,
        read_speed(folder),
        _origin(list(jobs), root),
        notes,
    )


def _pages(
    evaluated: Sequence[Job], folder: Path
) -> tuple[tuple[DatasetPage, ...], tuple[str, ...]]:
    """Gather the data sets, and say of which there is nothing to show.

    Several at a time: small models do not keep the cores busy one by one.
    """
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(lambda job: _page(job, folder), evaluated))
    pages = tuple(one for one in found if isinstance(one, DatasetPage))
    return pages, tuple(one for one in found if isinstance(one, str))


def _page(job: Job, folder: Path) -> DatasetPage | str:
    """Gather a data set; one whose preparation is not here has its row in the summary alone."""
    try:
        return dataset.gather(job, folder)
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
        By who, a row for each of `datasets` that the paper has. The paper's average is of all its
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
        who: tuple(
            _beside(name, rows.get(name, {}).get(who), published[name][who])
            for name in (*shared, AVERAGE)
            if who in published[name]
        )
        for who in PUBLISHED
    }


def across(
    protocols: Mapping[Protocol, Summary], source: str | None, datasets: Sequence[str]
) -> dict[Protocol, dict[str, tuple[Beside, ...]]]:
    """Put our accuracies on other data sets than the teacher's beside the paper's.

    Args:
        protocols: what was run, by protocol.
        source: the data set that its teacher was tuned on.
        datasets: of the profile; without the paper's source among them there is nothing to compare.

    Returns:
        By protocol and by who, a row for each of the paper's targets.
    """
    theirs = paper()["source_dataset"]
    if theirs not in datasets:
        return {}
    nothing: Summary = {"datasets": {}, AVERAGE: {}}
    run = protocols if source == theirs else {}
    return {
        protocol: beside(run.get(protocol, nothing), targets(protocol), protocol)
        for protocol in Protocol
        if protocol.has_source
    }


def targets(protocol: Protocol) -> list[str]:
    """Name the data sets that the paper has in a protocol."""
    return [name for name in paper()[protocol] if name != AVERAGE]


def _beside(name: str, scores: Scores | None, published: dict[str, float]) -> Beside:
    """Compare the numbers that the paper has; none are ours where other ones were measured."""
    if scores is None or not set(published) <= set(scores):
        return Beside(name, None, published, None)
    ours = {key: scores[key] for key in published}
    difference = {key: round(ours[key] - published[key], 2) for key in published}
    spread = {key: scores[f"{key}_std"] for key in published if f"{key}_std" in scores}
    return Beside(name, ours, published, difference, spread or None)


def _origin(datasets: Sequence[str], root: Path) -> Origin:
    """Gather where the numbers of the profile in this folder come from."""
    tags = commit_tags(root)
    stages = read_lock(LOCK.read_bytes(), f"'{LOCK}'") if LOCK.is_file() else {}
    outputs = (
        Output(out["path"], out["md5"], _state(Path(out["path"]), out["md5"]))
        for name in datasets
        for stage in STAGES
        for out in stages.get(f"{stage}@{name}", {}).get("outs", [])
    )
    return Origin(
        tags["git_commit"],
        tags.get("git_dirty") == "true",
        {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        masked(PARAMS.read_text(encoding="utf-8")),
        tuple(outputs),
    )


def _state(path: Path, recorded: str) -> str:
    found = content_hash(path)
    return SAME if found == recorded else NOT_HERE if found == ABSENT else OTHER
