"""The page's sentences, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page.build import Page
from pd_core.reporting.page.dataset import DatasetPage
from pd_core.reporting.page.published import paper as paper_numbers
from pd_core.reporting.protocol_report import findings
from pd_core.reporting.results import cautions, estimates

COST = (
    "To classify a decoded picture; class vectors are stored, so no text tower is at work. A "
    "multiplication and an addition are two operations."
)
HOW_TO_MEASURE = "Times and memory: `promptkd page --measure`."
DOTS = "A dot is a seed, a stroke the mean of all."
CALIBRATION = (
    "On the diagonal an answer is right as often as its confidence says; below it the model is too "
    "sure. ECE: expected calibration error, 15 bins."
)


def facts(page: Page) -> list[str]:
    """Say in a few words what the page is of."""
    changed = " and changes" if page.origin.changed else ""
    run = len(page.summary["datasets"]) + len(page.summary.get("accuracy_unknown", {}))
    return [
        f"{run} of {len(page.datasets)} data sets run",
        f"seed {page.seed}",
        f"commit {page.origin.commit[:10]}{changed}",
    ]


def summary(page: Page) -> list[str]:
    """Say how the accuracies of the summary are to be read."""
    return [
        "Accuracy on test images: base classes among base classes, novel ones among novel ones. "
        "One seed. The average's harmonic mean is that of the averaged halves, as in the paper.",
        *cautions(page.summary, page.titles),
        *estimates(page.summary, page.titles),
        *page.notes,
    ]


def seeds(page: Page) -> list[str]:
    """Say how the numbers of several seeds are to be read."""
    run = page.seeds.seeds
    if not run:
        return [page.seeds.note]
    several = len(run) > 1
    spread = "Shown are mean ± sample standard deviation over them. " if several else ""
    return [
        f"{_of_seeds(run)}. {spread}Averages are over the data sets within each seed.",
        "p is the chance of differences at least as clear as these if neither method were better "
        "(Wilcoxon's signed-rank test over data sets, each with the mean of its seeds); below 0.05 "
        "chance is no good explanation. It cannot be smaller than 2 / 2^n with n data sets.",
    ]


def protocol(page: Page, one: Protocol) -> list[str]:
    """Say which methods differ, and which runs lie far off."""
    lines = findings(one, page.seeds.protocols[one], page.titles)
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def paper(page: Page) -> str:
    """Say what stands beside the paper's numbers."""
    if not page.beside:
        return "None of this profile's data sets is one of the paper's: nothing to compare."
    return (
        "The paper's numbers are the mean of three seeds, as published (CVPR 2024, arXiv "
        f"2403.02781). From base to novel classes, ours are {_ours(page.beside_seeds)}. The "
        "paper's zero-shot student is CLIP."
    )


def across(page: Page) -> str:
    """Say whose accuracy stands beside the paper's on other data sets than the teacher's."""
    source = paper_numbers()["source_dataset"]
    ours = f" Ours are {_ours(page.seeds.seeds)}." if page.seeds.source == source else ""
    title = page.titles.get(source, source)
    return f"Accuracy over all classes; the teacher was tuned on {title} alone.{ours}"


def dataset(page: DatasetPage) -> str:
    """Say how large a data set is."""
    novel = len(page.classes) - page.base_count
    halves = f", {page.base_count} base and {novel} novel" if novel else ""
    images = f"{sum(page.images)} test images" if page.images else "no labelled test image"
    return f"{page.name}: {len(page.classes)} classes{halves}; {images}."


def gallery(page: DatasetPage) -> str:
    """Say how often teacher and student differ."""
    found = page.gallery
    if found is None:
        return ""
    differ = found.teacher_right + found.student_right + found.both_wrong
    return (
        f"They name different classes on {differ} of {found.images} test images: the teacher is "
        f"right on {found.teacher_right}, the student on {found.student_right}, neither on "
        f"{found.both_wrong}."
    )


def measured(page: Page) -> str:
    """Say on what times and memory were measured."""
    if not page.speed:
        return HOW_TO_MEASURE
    one = page.speed["student"]
    threads = f", threads: {one.threads}" if one.device == "CPU" else ""
    what = "of the whole process" if one.device == "CPU" else "of the GPU"
    return (
        f"Measured on {one.device}{threads}, {one.batch} pictures at a time; memory is the peak "
        f"{what}."
    )


def _of_seeds(seeds: Sequence[int]) -> str:
    numbers = ", ".join(map(str, seeds))
    return f"{len(seeds)} seeds: {numbers}" if len(seeds) > 1 else f"One seed: {numbers}"


def _ours(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"of seed {seeds[0]} alone"
    return f"the mean ± standard deviation of seeds {', '.join(map(str, seeds))}"
