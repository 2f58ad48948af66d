"""The results of all data sets: reading them, one summary, and the common look of reports."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadArtifact, missing
from pd_core.core.options import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart; ink for the rest
BLUE, VERMILION, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#DDDDDD"

_GAIN: dict[str, Any] = {"textcoords": "offset points", "color": BLUE, "fontsize": 10}


def png(draw: Callable[[Figure], None], *, height: float, gap: float = 0.1) -> bytes:
    """Draw a figure of ten inches' width.

    Args:
        draw: fills the figure.
        height: of the figure, inches.
        gap: above and below its axes, inches.

    Returns:
        A PNG image, the same bytes whatever the user's matplotlibrc.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        picture = Figure(figsize=(10, height), dpi=150)
        FigureCanvasAgg(picture)
        picture.set_layout_engine("constrained", h_pad=gap, w_pad=0.1)
        draw(picture)
        data = io.BytesIO()
        picture.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def bare(axes: Axes, **grid: Any) -> None:
    """Leave vertical grid lines and labels alone of the axes."""
    axes.grid(axis="x", color=FAINT, **grid)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def name_rows(axes: Axes, names: Sequence[str], *, average: bool = True) -> None:
    """Name the rows of a figure of results, top to bottom, the last being the average, if any."""
    last = len(names) - 1
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=INK)
    if average:
        axes.get_yticklabels()[last].set_fontweight("bold")
        axes.axhline(last - 0.5, color=INK, linewidth=0.8)
    axes.set_ylim(last + 0.5, -0.5)
    bare(axes, zorder=0)
    axes.annotate("gain", (1.0, 1.0), (8, 2), xycoords="axes fraction", va="bottom", **_GAIN)


def write_gain(axes: Axes, place: int, points: float) -> None:
    """Write right of a row by how much distilling raised the student's number."""
    beside: Any = ("axes fraction", "data")
    axes.annotate(f"{points:+.1f}", (1.0, place), (8, 0), xycoords=beside, va="center", **_GAIN)


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return a table's lines; all columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def terminal_table(name: str, width: int, **options: Any) -> Table:
    """Return an empty table for the terminal, with options of `rich.table.Table`.

    Its first column has the name and at least the width, which leaves the caption room.
    """
    from rich.box import HORIZONTALS
    from rich.table import Table

    table = Table(box=HORIZONTALS, show_edge=False, padding=0, **options)
    table.add_column(name, min_width=width)
    return table


WHO = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
EVERYBODY = (*WHO, BASELINE)
KEYS = ("base", "novel", "hm")
ALL = ("all",)  # what there is instead where all classes were taught
ACCURACY = "accuracy"  # the same number, as a summary calls that of every other protocol
ESTIMATES = ("agreement", "cross_validated")  # and where no test picture has a label

Scores = Mapping[str, float]  # base, novel, hm, ... -> percent
Evaluation = Mapping[str, Any]  # who -> scores; and "selection", if it was made on test images
Summary = Mapping[str, Any]  # what `summarise` returns
Titles = Mapping[str, str]  # readable names of data sets, where there are any


def read_evaluations(
    folder: Path,
    datasets: Sequence[str] = (),
    baselines: Sequence[str] = (),
    cross_validated: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Read the `evaluate` stage's metrics.

    Args:
        folder: holds `<data set>/metrics.json` and `tuned_student/<data set>.json`.
        datasets: the data sets to read; all that are there by default.
        baselines: those of them that have the baseline `tuned_student`.
        cross_validated: those of them whose accuracy is estimated by `cross_validate`.

    Returns:
        The scores by data set and by who, in percent.

    Raises:
        MissingFile: there is none, or one of `datasets` is not there.
        BadArtifact: a file lacks a number.
    """
    names = list(datasets) or sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    if not names:
        raise missing("evaluation", folder, "run `dvc repro`")
    found = {
        name: _read_scores(folder / name / "metrics.json", name, "evaluate", WHO)
        for name in sorted(names)
    }
    for name in set(baselines) & set(found):
        file = folder / BASELINE / f"{name}.json"
        found[name] = {**found[name], **_read_scores(file, name, BASELINE, [BASELINE])}
    for name in set(cross_validated) & set(found):
        found[name] = with_estimate(found[name], folder / "cross_validate" / f"{name}.json")
    return found


def with_estimate(scores: Evaluation, file: Path) -> Evaluation:
    """Add what the stage `cross_validate` wrote to the scores of `evaluate`.

    Raises:
        MissingFile: the file is not there.
        BadArtifact: it is no such file.
    """
    remedy = f"run `dvc repro cross_validate@{file.stem}`"
    found = read_json(file, what="cross-validation", remedy=remedy)
    return {**scores, **found, "counts": {**scores.get("counts", {}), **found["counts"]}}


def summarise(profile: str, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Collect the scores of all data sets and their averages.

    Data sets of which all classes were taught have no part in the average, see `average`.

    Args:
        profile: `quickstart` or `paper`.
        evaluations: the scores by data set and by who, in percent.

    Returns:
        `profile`, `datasets.<name>.<who>.{base,novel,hm}` (or `.all`, which is also called
        `accuracy`, as that of every other protocol is) and `average.<who>.{base,novel,hm}`, in
        percent with two decimals. The baseline has an average if all data sets have it. If there
        are any, `accuracy_unknown.<name>` has what was estimated without labelled test pictures,
        and `chosen_on_test` lists the data sets whose student was chosen so.
    """
    rows = dict(sorted(evaluations.items()))
    known = {name: scores for name, scores in rows.items() if not _is_estimate(scores)}
    averaged = [scores for scores in known.values() if _keys(scores) == KEYS]
    everywhere = [who for who in EVERYBODY if all(who in row for row in averaged)]
    summary: dict[str, Any] = {
        "profile": profile,
        "datasets": {
            name: {who: _shown(scores[who], _keys(scores)) for who in EVERYBODY if who in scores}
            for name, scores in known.items()
        },
        "average": {who: rounded(average([row[who] for row in averaged])) for who in everywhere}
        if averaged
        else {},
    }
    if len(known) < len(rows):
        summary["accuracy_unknown"] = {
            name: {key: rounded(scores[key]) for key in (*ESTIMATES, "counts") if key in scores}
            for name, scores in rows.items()
            if name not in known
        }
    if chosen := [name for name, scores in rows.items() if "selection" in scores]:
        summary["chosen_on_test"] = chosen
    return summary


def average(rows: Sequence[Scores], keys: Sequence[str] = KEYS) -> dict[str, float]:
    """Average each number; `hm` is the harmonic mean of the averaged base and novel accuracy.

    So it is in the paper's Table 1, where 86.96 and 80.73 give 83.73.
    """
    means = {key: fmean(row[key] for row in rows) for key in keys}
    if "hm" in means:
        means["hm"] = harmonic_mean([means["base"], means["novel"]])
    return means


def rounded(scores: Scores) -> dict[str, float]:
    """Round percentages to two decimals."""
    return {key: round(float(value), 2) for key, value in scores.items()}


def title(name: str, titles: Titles | None) -> str:
    """Return a data set's readable name, or its own where there is none."""
    return (titles or {}).get(name, name)


def rows_of(summary: Summary, titles: Titles | None) -> list[tuple[str, Evaluation]]:
    """Return the rows of a table: each data set by its readable name, then the average, if any."""
    named = [
        (title(name, titles) + (" (all classes)" if _keys(row) == ALL else ""), row)
        for name, row in summary["datasets"].items()
    ]
    return [*named, *([("average", summary["average"])] if summary["average"] else [])]


def columns(summary: Summary) -> list[str]:
    """Name the columns: the baseline only if some data set has it."""
    rows = summary["datasets"].values()
    return [who for who in EVERYBODY if any(who in row for row in rows)]


def cautions(summary: Summary, titles: Titles | None) -> list[str]:
    """Say which students were chosen on test images: one line, or none."""
    chosen = summary.get("chosen_on_test", [])
    names = ", ".join(title(name, titles) for name in chosen)
    told = "Student's epoch chosen on test images, as in the published code"
    return [f"{told}: {names}."] if chosen else []


def estimates(summary: Summary, titles: Titles | None) -> list[str]:
    """Say what is known of students that no labelled test picture measures: one line each."""
    return [
        f"{title(name, titles)}: accuracy unknown, no labelled test images; the "
        f"student agrees with its teacher on {row['agreement']['student']:.1f}% of "
        f"{row['counts']['unlabelled']:.0f} unlabelled images" + _cross_validated(row) + "."
        for name, row in summary.get("accuracy_unknown", {}).items()
    ]


def headline(scores: Scores) -> float:
    """Return the one number that stands for all: the harmonic mean, or that of all classes."""
    return scores["hm"] if "hm" in scores else scores["all"]


def gain(scores: Evaluation) -> float:
    """Return by how much distilling raised the student's headline number."""
    return float(headline(scores["student"]) - headline(scores["zero_shot_student"]))


def percent(value: Any, who: str, key: str, *, path: Path, remedy: str) -> float:
    """Return somebody's number out of the content of a metrics file.

    Raises:
        BadArtifact: it is not there, or is no percentage; the message names path and remedy.
    """
    try:
        number = value[who][key]
    except (KeyError, TypeError):
        raise BadArtifact(f"'{path}' has no number '{who}.{key}'; {remedy}") from None
    if type(number) not in (int, float) or not 0 <= number <= 100:
        raise BadArtifact(f"'{who}.{key}' in '{path}' is '{number}'; {remedy}")
    return float(number)


def _read_scores(path: Path, name: str, stage: str, everybody: Sequence[str]) -> Evaluation:
    remedy = f"run `dvc repro {stage}@{name}`"
    value = read_json(path, what=f"evaluation of '{name}'", remedy=remedy)
    if not isinstance(value, dict):
        raise BadArtifact(f"'{path}' holds no scores; {remedy}")
    if _is_estimate(value):
        everybody, keys = ["agreement"], ["student"]
    else:
        keys = list(_keys(value))
    for who in everybody:
        for key in keys:
            percent(value, who, key, path=path, remedy=remedy)
    return value


def _is_estimate(value: Evaluation) -> bool:
    return value.get("accuracy") == "unknown"


def _keys(value: Evaluation) -> tuple[str, ...]:
    """Name the numbers that everybody has: those of the protocol."""
    rows = [row for who in EVERYBODY if isinstance(row := value.get(who), Mapping)]
    return ALL if rows and all(set(row) - {ACCURACY} == set(ALL) for row in rows) else KEYS


def _cross_validated(row: Evaluation) -> str:
    if "cross_validated" not in row:
        return ""
    return (
        f"; cross-validated on {row['counts']['labels']:.0f} labels, "
        f"{row['cross_validated']['student']:.1f}% correct"
    )


def _shown(scores: Scores, keys: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a protocol; without two halves there is one, by two names."""
    numbers = rounded({key: scores[key] for key in keys})
    return numbers | ({ACCURACY: numbers["all"]} if tuple(keys) == ALL else {})
