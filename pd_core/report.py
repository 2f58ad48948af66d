"""Stage `report`: every data set's result in one place, as JSON, Markdown, a figure and a table.

All files are functions of the evaluations alone, to the byte: no times, hosts or versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.artifacts import check_sum, read_json, understood, write_json, write_text
from pd_core.atomic import write_folder
from pd_core.report_pictures import PICTURES, figure, samples
from pd_core.results import (
    BASELINE,
    TITLES,
    Evaluation,
    Scores,
    Summary,
    cautions,
    columns,
    estimates,
    gain,
    headline,
    read_evaluations,
    rows_of,
    summarise,
)

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = {  # of the terminal's table: whose numbers, before and after
    "student": ("zero_shot_student", "student"),
    "teacher": ("zero_shot_teacher", "teacher"),
    "tuned\nstudent": (BASELINE,),
}


def run(
    evaluations: Path,
    prepared: Path,
    folder: Path,
    *,
    profile: str,
    datasets: Sequence[str],
    baselines: Sequence[str] = (),
) -> None:
    """Stage `report`: write the summary of all data sets, and a sheet of sample pictures.

    Samples are shown of the data sets that bring their pictures, as the embedded ones do: a report
    must not need the photos.

    Args:
        evaluations: folder with `<data set>/metrics.json`, the `evaluate` stage's outputs.
        prepared: folder with `<data set>/split.json`, the `prepare` stage's outputs.
        folder: where the files go, `reports/<profile>`.
        profile: `quickstart` or `paper`.
        datasets: the data sets to report.
        baselines: those of them that have the baseline `tuned_student`.

    Raises:
        MissingFile: a data set has not been prepared or evaluated.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    titles = read_titles(prepared)
    with write_folder(folder) as new:
        write_report(
            evaluations,
            new,
            profile=profile,
            datasets=datasets,
            baselines=baselines,
            titles=titles,
        )
        bringing = [name for name in datasets if (prepared / name / PICTURES).is_file()]
        if bringing:
            (new / "samples.png").write_bytes(samples(prepared, bringing, titles=titles))


def read_titles(prepared: Path) -> dict[str, str]:
    """Read the readable name of each prepared data set."""
    files = sorted(prepared.glob("*/split.json"))
    titles = {}
    for path in files:
        remedy = f"run `dvc repro prepare@{path.parent.name}`"
        split = read_json(path, what="prepared data set", remedy=remedy)
        check_sum(path, what="prepared data set", remedy=remedy)
        with understood(path, what="prepared data set", remedy=remedy):
            titles[path.parent.name] = str(split["title"])
    return titles


def read_summary(folder: Path) -> Summary:
    """Read what `write_report` wrote.

    Raises:
        MissingFile: there is no report yet.
    """
    summary: Summary = read_json(folder / "summary.json", what="report", remedy="run `dvc repro`")
    return summary


def write_report(
    evaluations: Path,
    folder: Path,
    *,
    profile: str,
    datasets: Sequence[str] = (),
    baselines: Sequence[str] = (),
    titles: Mapping[str, str] | None = None,
) -> Summary:
    """Write `summary.json`, `summary.md` and, if an accuracy is known, `summary.png`.

    Args:
        evaluations: folder with `<data set>/metrics.json`, the `evaluate` stage's outputs.
        folder: where the three files go, `reports/<profile>`.
        profile: `quickstart` or `paper`.
        datasets: the data sets to report; all that are there by default.
        baselines: those of them that have the baseline `tuned_student`.
        titles: a readable name for each data set, where there is one.

    Returns:
        The summary, as `summarise` makes it.

    Raises:
        MissingFile: a data set has not been evaluated.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    summary = summarise(profile, read_evaluations(evaluations, datasets, baselines))
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", markdown(summary, titles))
    if summary["datasets"]:
        (folder / "summary.png").write_bytes(figure(summary, titles))
    return summary


def markdown(summary: Summary, titles: Mapping[str, str] | None = None) -> str:
    """Return the summary as a Markdown table: base / novel / harmonic mean per cell."""
    shown = columns(summary)
    heads = ["data set", *(TITLES[who] for who in shown)]
    rows = [
        [name, *(_cell(scores.get(who), bold=who == "student") for who in shown)]
        for name, scores in rows_of(summary, titles)
    ]
    lines = [
        f"# Results of the {summary['profile']} profile",
        "",
        "Accuracy in percent: base classes / novel classes / harmonic mean of the two. The",
        "average's harmonic mean is that of the averaged base and novel accuracy, as in the paper.",
        *cautions(summary, titles),
        "",
    ]
    if rows:
        lines += [_line(heads), _line(["---", *["---:"] * len(shown)]), *map(_line, rows)]
    lines += [f"\n{line}" for line in estimates(summary, titles)]
    return "\n".join(lines) + "\n"


def table(summary: Summary, titles: Mapping[str, str] | None = None) -> Table:
    """Return the harmonic means, before and after, as a table for the terminal, with the gain.

    80 columns hold the embedded data sets' names; a longer one is cut, not broken.
    """
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    caption = [
        "harmonic mean of base and novel accuracy, percent",
        "student: zero-shot → distilled; teacher: zero-shot → tuned",
        *cautions(summary, titles),
        *estimates(summary, titles),
    ]
    shown = Table(
        title=f"PromptKD, {summary['profile']} profile",
        caption=Text("\n".join(caption)),
        box=HORIZONTALS,
        show_edge=False,
        padding=0,
    )
    heads = [head for head, people in _COLUMNS.items() if people[-1] in columns(summary)]
    shown.add_column("data set", min_width=30)  # which leaves the caption room
    for head in (*heads, "gain"):
        style = "bold" if head == "student" else ""
        shown.add_column(head, justify="right", style=style, no_wrap=True)
    for index, (name, scores) in enumerate(rows_of(summary, titles), 1):
        shown.add_row(
            Text(name, no_wrap=True, overflow="ellipsis"),
            *(_change(scores, _COLUMNS[head]) for head in heads),
            f"{gain(scores):+.1f}",
            end_section=index == len(summary["datasets"]),  # above the average
        )
    return shown


def _change(scores: Evaluation, people: Iterable[str]) -> str:
    return " → ".join(f"{headline(scores[who]):4.1f}" for who in people if who in scores)


def _cell(scores: Scores | None, *, bold: bool) -> str:
    if scores is None:
        return ""
    number = f"{headline(scores):.2f}"
    shown = f"**{number}**" if bold else number
    return f"{scores['base']:.2f} / {scores['novel']:.2f} / {shown}" if "hm" in scores else shown


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
