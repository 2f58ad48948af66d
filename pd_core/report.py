"""The report: every data set's result in one place, as JSON, Markdown, a figure and a table.

All files are functions of the evaluations alone, to the byte: no times, hosts or versions.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import TYPE_CHECKING, Any

from pd_core.artifacts import read_json, write_folder, write_json, write_text
from pd_core.errors import BadArtifact, missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image
    from rich.table import Table

WHO = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
KEYS = ("base", "novel", "hm")
_PICTURES = "images.zip"

Scores = Mapping[str, float]  # base, novel, hm, ... -> percent
Evaluation = Mapping[str, Scores]  # who -> scores
Summary = Mapping[str, Any]  # what `summarise` returns

_TITLES = {
    "zero_shot_student": "zero-shot student",
    "zero_shot_teacher": "zero-shot teacher",
    "teacher": "tuned teacher",
    "student": "distilled student",
}
# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; ink for the rest
_STUDENT, _TEACHER, _INK, _FAINT = "#0072B2", "#D55E00", "#333333", "#DDDDDD"
_DOTS_PER_INCH = 150
_SAMPLE, _GAP, _LABEL = 64, 4, 230  # pixels: side of a picture, space between, width of the names


def run(
    evaluations: Path, prepared: Path, folder: Path, *, profile: str, datasets: Sequence[str]
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

    Raises:
        MissingFile: a data set has not been prepared or evaluated.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    titles = read_titles(prepared)
    with write_folder(folder) as new:
        write_report(evaluations, new, profile=profile, datasets=datasets, titles=titles)
        bringing = [name for name in datasets if (prepared / name / _PICTURES).is_file()]
        if bringing:
            (new / "samples.png").write_bytes(samples(prepared, bringing, titles=titles))


def read_titles(prepared: Path) -> dict[str, str]:
    """Read the readable name of each prepared data set."""
    files = sorted(prepared.glob("*/split.json"))
    return {path.parent.name: str(read_json(path)["title"]) for path in files}


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
    titles: Mapping[str, str] | None = None,
) -> Summary:
    """Write `summary.json`, `summary.md` and `summary.png`.

    Args:
        evaluations: folder with `<data set>/metrics.json`, the `evaluate` stage's outputs.
        folder: where the three files go, `reports/<profile>`.
        profile: `quickstart` or `paper`.
        datasets: the data sets to report; all that are there by default.
        titles: a readable name for each data set, where there is one.

    Returns:
        The summary, as `summarise` makes it.

    Raises:
        MissingFile: a data set has not been evaluated.
        BadArtifact: a metrics file lacks a number.
        PdError: the folder cannot be written.
    """
    summary = summarise(profile, read_evaluations(evaluations, datasets))
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", markdown(summary, titles))
    (folder / "summary.png").write_bytes(figure(summary, titles))
    return summary


def read_evaluations(folder: Path, datasets: Sequence[str] = ()) -> dict[str, Evaluation]:
    """Read the `evaluate` stage's metrics.

    Args:
        folder: holds `<data set>/metrics.json`.
        datasets: the data sets to read; all that are there by default.

    Returns:
        The scores by data set and by who, in percent.

    Raises:
        MissingFile: there is none, or one of `datasets` is not there.
        BadArtifact: a file lacks a number.
    """
    names = list(datasets) or sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    if not names:
        raise missing("evaluation", folder, "run `dvc repro`")
    return {name: _read_evaluation(folder / name / "metrics.json", name) for name in sorted(names)}


def summarise(profile: str, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Collect the scores of all data sets and their averages.

    The average's `hm` is the harmonic mean of the averaged base and novel accuracy, as in the
    paper's Table 1 (86.96 and 80.73 give 83.73), not the average of the harmonic means.

    Args:
        profile: `quickstart` or `paper`.
        evaluations: the scores by data set and by who, in percent.

    Returns:
        `profile`, `datasets.<name>.<who>.{base,novel,hm}` and `average.<who>.{base,novel,hm}`,
        in percent with two decimals.
    """
    datasets = {
        name: {who: _rounded({key: scores[who][key] for key in KEYS}) for who in WHO}
        for name, scores in sorted(evaluations.items())
    }
    return {
        "profile": profile,
        "datasets": datasets,
        "average": {who: _average([scores[who] for scores in evaluations.values()]) for who in WHO},
    }


def markdown(summary: Summary, titles: Mapping[str, str] | None = None) -> str:
    """Return the summary as a Markdown table: base / novel / harmonic mean per cell."""
    heads = ["data set", *(_TITLES[who] for who in WHO)]
    rows = [
        [name, *(_cell(scores[who], bold=who == "student") for who in WHO)]
        for name, scores in _rows(summary, titles)
    ]
    lines = [
        f"# Results of the {summary['profile']} profile",
        "",
        "Accuracy in percent: base classes / novel classes / harmonic mean of the two. The",
        "average's harmonic mean is that of the averaged base and novel accuracy, as in the paper.",
        "",
        _line(heads),
        _line(["---", *["---:"] * len(WHO)]),
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def table(summary: Summary, titles: Mapping[str, str] | None = None) -> Table:
    """Return the harmonic means as a table for the terminal, with the student's gain."""
    from rich.table import Table

    shown = Table(
        title=f"PromptKD, {summary['profile']} profile",
        caption="harmonic mean of base and novel accuracy, percent; gain: distilled over zero-shot",
    )
    shown.add_column("data set")
    for who in WHO:
        style = "bold" if who == "student" else ""
        shown.add_column(_TITLES[who].replace(" ", "\n"), justify="right", style=style)
    shown.add_column("gain", justify="right")
    rows = _rows(summary, titles)
    for index, (name, scores) in enumerate(rows):
        numbers = [f"{scores[who]['hm']:.1f}" for who in WHO]
        shown.add_row(name, *numbers, f"{_gain(scores):+.1f}", end_section=index == len(rows) - 2)
    return shown


def figure(summary: Summary, titles: Mapping[str, str] | None = None) -> bytes:
    """Draw what tuning and distilling changed, data set by data set.

    Each data set has two dumbbells on the axis of the harmonic mean: the teacher's, from zero-shot
    to tuned, and the student's, from zero-shot to distilled. Data sets are in the order of the
    distilled student's result; the average comes last.

    Returns:
        A PNG picture, the same bytes for the same summary.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    *rows, average = _rows(summary, titles)
    rows = [*sorted(rows, key=lambda row: (-row[1]["student"]["hm"], row[0])), average]
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        picture = Figure(figsize=(10, 1.7 + 0.42 * len(rows)), dpi=_DOTS_PER_INCH)
        FigureCanvasAgg(picture)
        picture.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
        axes = picture.add_subplot()
        for place, (_, scores) in enumerate(rows):
            _dumbbells(axes, place, scores)
        _decorate(axes, [name for name, _ in rows])
        data = io.BytesIO()
        picture.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def samples(
    prepared: Path,
    datasets: Iterable[str],
    *,
    titles: Mapping[str, str] | None = None,
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
    from PIL import Image, ImageDraw, ImageFont

    names = list(datasets)
    step = _SAMPLE + _GAP
    sheet = Image.new("RGB", (_LABEL + count * step, len(names) * step + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(_font_file(), 15)
    for row, name in enumerate(names):
        top = _GAP + row * step
        label = (titles or {}).get(name, name)
        pen.text((12, top + _SAMPLE // 2), label, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(_pictures(prepared / name, count)):
            sheet.paste(image, (_LABEL + column * step, top))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    return data.getvalue()


def _read_evaluation(path: Path, name: str) -> Evaluation:
    remedy = f"run `dvc repro evaluate@{name}`"
    value = read_json(path, what=f"evaluation of '{name}'", remedy=remedy)
    for who in WHO:
        for key in KEYS:
            try:
                number = value[who][key]
            except (KeyError, TypeError):
                raise BadArtifact(f"'{path}' has no number '{who}.{key}'; {remedy}") from None
            if type(number) not in (int, float) or not math.isfinite(number):
                raise BadArtifact(f"'{who}.{key}' in '{path}' is '{number}'; {remedy}")
    scores: Evaluation = value
    return scores


def _average(scores: Sequence[Scores]) -> dict[str, float]:
    base, novel = (fmean(row[key] for row in scores) for key in ("base", "novel"))
    return _rounded({"base": base, "novel": novel, "hm": harmonic_mean([base, novel])})


def _rounded(scores: Scores) -> dict[str, float]:
    return {key: round(float(value), 2) for key, value in scores.items()}


def _rows(summary: Summary, titles: Mapping[str, str] | None) -> list[tuple[str, Evaluation]]:
    named = [((titles or {}).get(name, name), row) for name, row in summary["datasets"].items()]
    return [*named, ("average", summary["average"])]


def _gain(scores: Evaluation) -> float:
    return scores["student"]["hm"] - scores["zero_shot_student"]["hm"]


def _cell(scores: Scores, *, bold: bool) -> str:
    hm = f"{scores['hm']:.2f}"
    return f"{scores['base']:.2f} / {scores['novel']:.2f} / {f'**{hm}**' if bold else hm}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _dumbbells(axes: Axes, place: int, scores: Evaluation) -> None:
    pairs = (
        (-0.15, _TEACHER, "zero_shot_teacher", "teacher"),
        (0.15, _STUDENT, "zero_shot_student", "student"),
    )
    for offset, colour, before, after in pairs:
        y = place + offset
        start, end = scores[before]["hm"], scores[after]["hm"]
        axes.plot([start, end], [y, y], color=colour, alpha=0.35, linewidth=3, zorder=2)
        for who, x, fill in ((before, start, "white"), (after, end, colour)):
            axes.plot(
                [x],
                [y],
                marker="o",
                linestyle="none",
                markersize=7,
                markerfacecolor=fill,
                markeredgecolor=colour,
                markeredgewidth=1.6,
                zorder=3,
                label=_TITLES[who] if place == 0 else None,
            )
    axes.annotate(
        f"{_gain(scores):+.1f}",
        (1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=_STUDENT,
        fontsize=10,
    )


def _decorate(axes: Axes, names: Sequence[str]) -> None:
    last = len(names) - 1
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=_INK)
    axes.get_yticklabels()[last].set_fontweight("bold")
    axes.axhline(last - 0.5, color=_INK, linewidth=0.8)
    axes.set_ylim(last + 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color=_FAINT, zorder=0)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("harmonic mean of base and novel accuracy (%)", color=_INK)
    axes.annotate(
        "gain",
        (1.0, 1.0),
        xycoords="axes fraction",
        xytext=(8, 2),
        textcoords="offset points",
        va="bottom",
        color=_STUDENT,
        fontsize=10,
    )
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=10)


def _font_file() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _pictures(folder: Path, count: int) -> list[Image.Image]:
    remedy = f"run `dvc repro prepare@{folder.name}`"
    split = read_json(folder / "split.json", what="prepared data set", remedy=remedy)
    paths = [path for path, _ in split["test"]]
    chosen = [paths[index * len(paths) // count] for index in range(min(count, len(paths)))]
    if not (folder / _PICTURES).is_file():
        raise missing("pictures", folder / _PICTURES, remedy)
    with zipfile.ZipFile(folder / _PICTURES) as archive:
        return [_thumbnail(archive.read(path)) for path in chosen]


def _thumbnail(content: bytes) -> Image.Image:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.fit(image.convert("RGB"), (_SAMPLE, _SAMPLE))
