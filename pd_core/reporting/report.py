"""Stage `report`: all data sets' results as JSON, Markdown, figures and a table."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.core.artifacts import check_sum, read_json, understood, write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import missing
from pd_core.core.options import BASELINE, TITLES
from pd_core.reporting import results
from pd_core.reporting.results import (
    Evaluation,
    Scores,
    Summary,
    Titles,
    cautions,
    columns,
    estimates,
    gain,
    headline,
    read_evaluations,
    rows_of,
    summarise,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image
    from rich.table import Table

PICTURES = "images.zip"
"""Where a prepared data set that brings its pictures has them."""

_SAMPLE, _GAP, _MARGIN = 64, 4, 12  # pixels: side of a picture, space between, around the names


def figure(summary: Summary, titles: Titles | None = None) -> bytes:
    """Draw what tuning and distilling changed, data set by data set.

    Each data set has two dumbbells on the axis of the harmonic mean (or of the accuracy on all
    classes, if these were taught): the teacher's, from zero-shot to tuned, and the student's, from
    zero-shot to distilled. Data sets are in the order of the distilled student's result; the
    average, if there is one, comes last.

    Returns:
        A PNG picture, the same bytes for the same summary.
    """
    named = rows_of(summary, titles)
    count = len(summary["datasets"])
    rows = sorted(named[:count], key=lambda row: (-headline(row[1]["student"]), row[0]))
    rows += named[count:]

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for place, (_, scores) in enumerate(rows):
            _dumbbells(axes, place, scores)
        results.name_rows(axes, [name for name, _ in rows], average=len(rows) > count)
        axes.set_xlim(0, 100)
        label = ["harmonic mean of base and novel accuracy (%)", *cautions(summary, titles)]
        axes.set_xlabel("\n".join(label), color=results.INK)
        picture.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=10)

    return results.png(draw, height=1.7 + 0.42 * len(rows))


def samples(
    prepared: Path,
    datasets: Iterable[str],
    *,
    titles: Titles | None = None,
    count: int = 10,
) -> bytes:
    """Draw a strip of test pictures of each data set.

    Args:
        prepared: holds `<data set>/split.json` and `images.zip`, the `prepare` stage's outputs.
        datasets: the data sets, top to bottom.
        titles: a readable name for each data set, where there is one.
        count: pictures per data set, evenly spread over its test list.

    Returns:
        A PNG picture, the same bytes for the same data.

    Raises:
        MissingFile: a data set has not been prepared, or a picture is not there.
    """
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    names = list(datasets)
    step = _SAMPLE + _GAP
    labels = [title(name, titles) for name in names]
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 15)
    left = 2 * _MARGIN + math.ceil(max(map(font.getlength, labels), default=0))
    sheet = Image.new("RGB", (left + count * step, len(names) * step + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        top = _GAP + row * step
        pen.text((_MARGIN, top + _SAMPLE // 2), label, fill=results.INK, font=font, anchor="lm")
        for column, image in enumerate(_pictures(prepared / name, count)):
            sheet.paste(image, (left + column * step, top))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    return data.getvalue()


def _dumbbells(axes: Axes, place: int, scores: Evaluation) -> None:
    pairs = (
        (place - 0.15, results.VERMILION, "zero_shot_teacher", "teacher"),
        (place + 0.15, results.BLUE, "zero_shot_student", "student"),
    )
    for y, colour, before, after in pairs:
        start, end = headline(scores[before]), headline(scores[after])
        axes.plot([start, end], [y, y], color=colour, alpha=0.35, linewidth=3, zorder=2)
        for who, x, fill in ((before, start, "white"), (after, end, colour)):
            axes.plot(
                [x], [y], marker="o", linestyle="none", markersize=7, zorder=3,
                markerfacecolor=fill, markeredgecolor=colour, markeredgewidth=1.6,
                label=TITLES[who] if place == 0 else None,
            )  # fmt: skip
    results.write_gain(axes, place, gain(scores))


def _pictures(folder: Path, count: int) -> list[Image.Image]:
    from PIL import ImageOps

    from pd_core.data.loading.decode import decode

    remedy = f"run `dvc repro prepare@{folder.name}`"
    split = read_json(folder / "split.json", what="prepared data set", remedy=remedy)
    paths = [path for path, _ in split["test"]]
    chosen = [paths[index * len(paths) // count] for index in range(min(count, len(paths)))]
    if not (folder / PICTURES).is_file():
        raise missing("pictures", folder / PICTURES, remedy)
    with zipfile.ZipFile(folder / PICTURES) as archive:
        return [ImageOps.fit(decode(archive.read(path)), (_SAMPLE, _SAMPLE)) for path in chosen]


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
    cross_validated: Sequence[str] = (),
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
        cross_validated: those of them whose accuracy is estimated by `cross_validate`.

    Raises:
        MissingFile: a data set has not been prepared or evaluated.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    titles = read_titles(prepared)
    summary = summarise(
        profile, read_evaluations(evaluations, datasets, baselines, cross_validated)
    )
    with write_folder(folder) as new:
        write_summary(summary, new, titles)
        bringing = [name for name in datasets if (prepared / name / PICTURES).is_file()]
        if bringing:
            (new / "samples.png").write_bytes(samples(prepared, bringing, titles=titles))


def read_titles(prepared: Path) -> dict[str, str]:
    """Read the readable name of each prepared data set."""
    titles = {}
    for path in sorted(prepared.glob("*/split.json")):
        remedy = f"run `dvc repro prepare@{path.parent.name}`"
        split = read_json(path, what="prepared data set", remedy=remedy)
        check_sum(path, what="prepared data set", remedy=remedy)
        with understood(path, what="prepared data set", remedy=remedy):
            titles[path.parent.name] = str(split["title"])
    return titles


def write_summary(summary: Summary, folder: Path, titles: Titles | None = None) -> None:
    """Write `summary.json`, `summary.md` and, if an accuracy is known, `summary.png`.

    Raises:
        PdError: the folder cannot be written.
    """
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", markdown(summary, titles))
    if summary["datasets"]:
        (folder / "summary.png").write_bytes(figure(summary, titles))


def read_summary(folder: Path) -> Summary:
    """Read what `write_summary` wrote.

    Raises:
        MissingFile: there is no report yet.
    """
    summary: Summary = read_json(folder / "summary.json", what="report", remedy="run `dvc repro`")
    return summary


def markdown(summary: Summary, titles: Titles | None = None) -> str:
    """Return the summary as a Markdown table: base / novel / harmonic mean per cell."""
    shown = columns(summary)
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
        lines += results.markdown_table(["data set", *(TITLES[who] for who in shown)], rows)
    lines += [f"\n{line}" for line in estimates(summary, titles)]
    return "\n".join(lines) + "\n"


def table(summary: Summary, titles: Titles | None = None) -> Table:
    """Return the harmonic means, before and after, as a table for the terminal, with the gain.

    80 columns hold the embedded data sets' names; a longer one is cut, not broken.
    """
    from rich.text import Text

    caption = [
        "harmonic mean of base and novel accuracy, percent",
        "student: zero-shot → distilled; teacher: zero-shot → tuned",
        *cautions(summary, titles),
        *estimates(summary, titles),
    ]
    profile = f"PromptKD, {summary['profile']} profile"
    shown = results.terminal_table("data set", 30, title=profile, caption=Text("\n".join(caption)))
    heads = [head for head, people in _COLUMNS.items() if people[-1] in columns(summary)]
    for head in (*heads, "gain"):
        weight = "bold" if head == "student" else ""
        shown.add_column(head, justify="right", style=weight, no_wrap=True)
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
