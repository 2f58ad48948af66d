"""Stage `report`: the results of all data sets as JSON, Markdown, figures and a table."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import read_json, write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import missing
from pd_core.core.options import BASELINE, TITLES
from pd_core.core.scores import LEGEND, gain, headline, is_worse, mark
from pd_core.reporting import figures
from pd_core.reporting.results import (
    ACCURACY,
    ALL,
    ESTIMATES,
    KEYS,
    MODELS_AND_BASELINE,
    Evaluation,
    Scores,
    Summary,
    Titles,
    average,
    is_estimate,
    keys_of_row,
    read_evaluations,
    read_titles,
    rounded,
    title,
    worse,
)
from pd_core.reporting.tables import Column, Kind, Row, Table

if TYPE_CHECKING:
    from PIL import Image

IMAGES = "images.zip"
"""File of a prepared data set that brings its images."""

_SAMPLE, _GAP, _MARGIN = 64, 4, 12  # pixels: side of an image, space between, around the names
_COLUMNS = {  # of the terminal's table: models before and after
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
    """Stage `report`: write the summary of all data sets, and a sheet of sample images.

    Samples are of the data sets that bring their images, as the embedded ones do: a report must
    not need the photos.

    Args:
        evaluations: folder with `<data set>/metrics.json`, the `evaluate` stage's outputs.
        prepared: folder with `<data set>/split.json`, the `prepare` stage's outputs.
        folder: output folder, `reports/<profile>`.
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
        bringing = [name for name in datasets if (prepared / name / IMAGES).is_file()]
        if bringing:
            (new / "samples.png").write_bytes(samples(prepared, bringing, titles=titles))


def summarise(profile: str, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Collect the scores of all data sets and their averages.

    Data sets of which all classes were taught have no part in the average, see `average`.

    Returns:
        `profile`, `datasets.<name>.<model>.{base,novel,hm}` (or `.all`, which is also called
        `accuracy`, as that of every other protocol is) and `average.<model>.{base,novel,hm}`, in
        percent with two decimals. The baseline has an average if all data sets have it. If there
        are any, `accuracy_unknown.<name>` has the estimates without labelled test images, and
        `chosen_on_test` lists the data sets whose student was chosen so.
    """
    rows = dict(sorted(evaluations.items()))
    measured = {name: scores for name, scores in rows.items() if not is_estimate(scores)}
    averaged = [scores for scores in measured.values() if keys_of_row(scores) == KEYS]
    shared = [model for model in MODELS_AND_BASELINE if all(model in row for row in averaged)]
    summary: dict[str, Any] = {
        "profile": profile,
        "datasets": {
            name: {model: _scores(row, model) for model in MODELS_AND_BASELINE if model in row}
            for name, row in measured.items()
        },
        "average": {model: rounded(average([row[model] for row in averaged])) for model in shared}
        if averaged
        else {},
    }
    if len(measured) < len(rows):
        summary["accuracy_unknown"] = {
            name: {key: rounded(scores[key]) for key in (*ESTIMATES, "counts") if key in scores}
            for name, scores in rows.items()
            if name not in measured
        }
    if chosen := [name for name, scores in rows.items() if "selection" in scores]:
        summary["chosen_on_test"] = chosen
    return summary


def _scores(row: Evaluation, model: str) -> Scores:
    numbers = rounded({key: row[model][key] for key in keys_of_row(row)})
    return numbers | ({ACCURACY: numbers["all"]} if "all" in numbers else {})


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


def rows_of(summary: Summary, titles: Titles | None) -> list[tuple[str, Evaluation]]:
    """Return readable name and scores of each data set, then the average, if any."""
    rows = [
        (title(name, titles) + (" (all classes)" if keys_of_row(row) == ALL else ""), row)
        for name, row in summary["datasets"].items()
    ]
    return [*rows, *([("average", summary["average"])] if summary["average"] else [])]


def models_of(summary: Summary) -> list[str]:
    """Return the models to show: the baseline only if some data set has it."""
    rows = summary["datasets"].values()
    return [model for model in MODELS_AND_BASELINE if any(model in row for row in rows)]


def cautions(summary: Summary, titles: Titles | None) -> list[str]:
    """Name the students chosen on test images, and those that distillation made worse."""
    chosen = summary.get("chosen_on_test", [])
    names = ", ".join(title(name, titles) for name in chosen)
    lines = [f"{line}." for line in worse(summary, titles)]
    if chosen:
        lines.append(f"Student's epoch chosen on test images, as in the published code: {names}.")
    return lines


def estimates(summary: Summary, titles: Titles | None) -> list[str]:
    """Describe the students that no labelled test image measures: one line each."""
    lines = []
    for name, row in summary.get("accuracy_unknown", {}).items():
        line = (
            f"{title(name, titles)}: accuracy unknown, no labelled test images; the "
            f"student agrees with its teacher on {row['agreement']['student']:.1f}% of "
            f"{row['counts']['unlabelled']:.0f} unlabelled images"
        )
        if "cross_validated" in row:
            line += (
                f"; cross-validated on {row['counts']['labels']:.0f} labels, "
                f"{row['cross_validated']['student']:.1f}% correct"
            )
            if is_worse(row):
                line += f" ({LEGEND}, {row['cross_validated']['zero_shot_student']:.1f}%)"
        lines.append(f"{line}.")
    return lines


def markdown(summary: Summary, titles: Titles | None = None) -> str:
    """Return the summary as a Markdown table: base / novel / harmonic mean per cell."""
    models = models_of(summary)
    rows = [
        (name, *(_cell(scores, model) for model in models))
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
        lines.append(Table(["data set", *(TITLES[model] for model in models)], rows).markdown())
    lines += [f"\n{line}" for line in estimates(summary, titles)]
    return "\n".join(lines) + "\n"


def _cell(row: Evaluation, model: str) -> str:
    if model not in row:
        return ""
    scores = row[model]
    number = f"{headline(scores):.2f}{mark(model, row)}"
    number = f"**{number}**" if model == "student" else number
    return f"{scores['base']:.2f} / {scores['novel']:.2f} / {number}" if "hm" in scores else number


def table(summary: Summary, titles: Titles | None = None) -> Table:
    """Return the headline numbers, before and after, and the gain."""
    heads = [head for head, models in _COLUMNS.items() if models[-1] in models_of(summary)]
    rows = []
    for index, (name, scores) in enumerate(rows_of(summary, titles)):
        changes = (
            " → ".join(_change(scores, model) for model in _COLUMNS[head] if model in scores)
            for head in heads
        )
        kind = Kind.PLAIN if index < len(summary["datasets"]) else Kind.AVERAGE
        rows.append(Row((name, *changes, f"{gain(scores):+.1f}"), kind))
    return Table(
        ["data set", *(Column(head, bold=head == "student") for head in heads), "gain"],
        rows,
        title=f"PromptKD, {summary['profile']} profile",
        notes=[
            "harmonic mean of base and novel accuracy, percent",
            "student: zero-shot → distilled; teacher: zero-shot → tuned",
            *cautions(summary, titles),
            *estimates(summary, titles),
        ],
        name_width=30,
    )


def _change(row: Evaluation, model: str) -> str:
    return f"{headline(row[model]):4.1f}{mark(model, row)}"


def figure(summary: Summary, titles: Titles | None = None) -> bytes:
    """Draw what tuning and distillation changed, as a PNG image."""
    rows, count = rows_of(summary, titles), len(summary["datasets"])
    average_row = rows[-1] if len(rows) > count else None
    return figures.dumbbells(rows[:count], average_row, cautions(summary, titles))


def samples(
    prepared: Path,
    datasets: Iterable[str],
    *,
    titles: Titles | None = None,
    count: int = 10,
) -> bytes:
    """Draw a strip of `count` test images of each data set, evenly spread, as a PNG image.

    Raises:
        MissingFile: a data set has not been prepared, or an image is not there.
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
        pen.text((_MARGIN, top + _SAMPLE // 2), label, fill=figures.INK, font=font, anchor="lm")
        for column, image in enumerate(_images(prepared / name, count)):
            sheet.paste(image, (left + column * step, top))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    return data.getvalue()


def _images(folder: Path, count: int) -> list[Image.Image]:
    from PIL import ImageOps

    from pd_core.data.loading.decode import decode

    remedy = f"run `dvc repro prepare@{folder.name}`"
    split = read_json(folder / "split.json", what="prepared data set", remedy=remedy)
    paths = [path for path, _ in split["test"]]
    chosen = [paths[index * len(paths) // count] for index in range(min(count, len(paths)))]
    if not (folder / IMAGES).is_file():
        raise missing("images", folder / IMAGES, remedy)
    with zipfile.ZipFile(folder / IMAGES) as archive:
        return [ImageOps.fit(decode(archive.read(path)), (_SAMPLE, _SAMPLE)) for path in chosen]
