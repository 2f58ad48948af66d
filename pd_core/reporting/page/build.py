"""Gather the whole page, and write it as HTML, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.errors import PdError
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.stages.layout import Job
from pd_core.reporting.page import dataset, published, speed
from pd_core.reporting.page.answers import AT_A_TIME
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.origin import Origin, origin
from pd_core.reporting.page.published import Beside, Seeds, across, beside
from pd_core.reporting.page.speed import Speed
from pd_core.reporting.report import read_titles
from pd_core.reporting.results import BASELINE, Summary, read_evaluations, summarise

NAME = "report"  # of the three files
ANSWERS = "answers"  # the folder beside them


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        profile: `quickstart` or `paper`.
        seed: of the runs.
        datasets: all of the profile, run or not.
        titles: readable names, also of data sets that are not the profile's.
        summary: what `results.summarise` made of those that were run.
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
    summary = summarise(profile, read_evaluations(evaluations, names, having) if names else {})
    several = published.read(protocols)
    ours, of = _base_to_novel(summary, several)
    pages, notes = _pages(evaluated, folder / ANSWERS)
    return Page(
        profile,
        first.seed,
        tuple(jobs),
        _titles(first.prepared.parent),
        summary,
        several,
        beside(ours, list(jobs)),
        of or (first.seed,),
        across(several.protocols, several.source, list(jobs)),
        pages,
        speed.kept(folder),
        origin(list(jobs), root),
        notes,
    )


def write(page: Page, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json`; return the first.

    Raises:
        PdError: the folder cannot be written.
    """
    from pd_core.reporting.page import html, markdown

    path = folder / f"{NAME}.html"
    write_json(path.with_suffix(".json"), asdict(page))
    write_text(path.with_suffix(".md"), markdown.text(page))
    write_text(path, html.text(page))
    return path


def _base_to_novel(summary: Summary, several: Seeds) -> tuple[Summary, tuple[int, ...]]:
    """Return what several seeds say and these, if they were run wherever the single one was."""
    measured = several.protocols.get(Protocol.BASE_TO_NOVEL)
    if measured is None or not set(summary["datasets"]) <= set(measured["datasets"]):
        return summary, ()
    return measured, several.seeds


def _titles(prepared: Path) -> dict[str, str]:
    """Return readable names: the catalogue's, and of your own pictures what was prepared."""
    titles = read_titles(prepared)
    others = set(dataset_names()) - set(titles)
    return titles | {name: dataset_spec(name).title for name in others}


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
