"""The ablations: each variant's difference to the default, beside the paper's for the same change.

All files are functions of the measurements alone, to the byte: no times, hosts or versions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import read_json, write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.reporting import results as style
from pd_core.reporting.results import KEYS, Scores, Summary, average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table as TerminalTable

    from pd_core.pipeline.ablations import AblationRow as Row
    from pd_core.pipeline.ablations import AblationTable as Table

FOOTNOTE = "checkpoint chosen on test images, as the published code does"

Spread = Mapping[str, float | None]  # mean and sd, where there is one

_REMEDY = "run `make ablations`"
_SELECTION, _MARK, _NONE, _BAND = "selection", "†", "–", "#F0F0F0"
_PAPERS = "paper: base / novel / harmonic mean"
_HEADS = ("", "base", "novel", "harmonic mean", "difference", _PAPERS, "paper: difference")


@dataclass(frozen=True)
class Results:
    """What was measured of all variants."""

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[tuple[str, str, str, int], Scores]  # by variant, who, data set and seed
    chosen_on_test: frozenset[str]  # the variants with a checkpoint chosen on test images


def run(
    results: Path,
    folder: Path,
    *,
    tables: Sequence[Table],
    datasets: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Write `summary.json`, `summary.md` and `summary.png`.

    Args:
        results: holds `<variant>/<data set>/metrics.json`.
        folder: where the three files go; replaced.
        tables: the ablations to report.
        datasets: the data sets to average over.
        seeds: the seeds to average over.

    Returns:
        The summary, as `summarise` makes it.

    Raises:
        PdError: as of `read` and `summarise`, or the folder cannot be written.
    """
    summary = summarise(read(results, tables=tables, datasets=datasets, seeds=seeds), tables)
    with write_folder(folder) as new:
        write_json(new / "summary.json", summary)
        write_text(new / "summary.md", markdown(summary))
        (new / "summary.png").write_bytes(figure(summary))
    return summary


def read(
    results: Path, *, tables: Sequence[Table], datasets: Sequence[str], seeds: Sequence[int]
) -> Results:
    """Read what the tables show, and ignore whatever else was measured.

    Raises:
        MissingFile: a variant was not run on a data set.
        BadArtifact: a file lacks a seed or a number.
        BadParams: there is no data set or no seed.
    """
    if not datasets or not seeds:
        raise BadParams("the ablations need at least one data set and one seed")
    shown = sorted({(row.variant, str(row.who)) for part in tables for row in part.rows})
    scores, chosen = {}, set()
    for variant, name in product(sorted({variant for variant, _ in shown}), datasets):
        path = results / variant / name / "metrics.json"
        value = read_json(path, what=f"result of '{variant}' on '{name}'", remedy=_REMEDY)
        for seed in seeds:
            entry = _entry(path, value, seed)
            if _SELECTION in entry:
                chosen.add(variant)
            for who in (who for one, who in shown if one == variant):
                scores[variant, who, name, seed] = _scores(path, entry, seed, who)
    return Results(tuple(datasets), tuple(seeds), scores, frozenset(chosen))


def summarise(results: Results, tables: Sequence[Table]) -> dict[str, Any]:
    """Average the scores and compare each row with its table's reference.

    Means and sample standard deviations are over the seeds; differences are of `hm`, seed by seed.
    `p` is of a two-sided paired t-test on the `hm` of all pairs of data set and seed.

    Returns:
        `datasets`, `seeds`, and `tables` with `title`, `source` and `rows`; a row has `label`,
        `variant`, `who`, `reference`, `chosen_on_test`, `{base,novel,hm}.{mean,sd}`,
        `difference.{mean,sd,p}`, `paper.{base,novel,hm}` and `paper_difference`. What does not
        exist is None. Percent and points have two decimals, `p` has four.

    Raises:
        BadParams: a table lacks its reference.
    """
    parts = []
    for part in tables:
        rows = [_summarise_row(results, row, part.reference_row) for row in part.rows]
        parts.append({"title": part.title, "source": part.source, "rows": rows})
    return {"datasets": list(results.datasets), "seeds": list(results.seeds), "tables": parts}


def markdown(summary: Summary) -> str:
    """Return the summary as Markdown: what was run, then one section per ablation."""
    lines = _introduction(summary["datasets"], summary["seeds"])
    for part in summary["tables"]:
        lines += ["", f"## {part['title']}", "", f"Source: {part['source']}.", ""]
        lines += style.markdown_table(_HEADS, map(_cells, part["rows"]))
        if any(row["chosen_on_test"] for row in part["rows"]):
            lines += ["", f"{_MARK} {FOOTNOTE}"]
    return "\n".join(lines) + "\n"


def table(summary: Summary) -> TerminalTable:
    """Return the harmonic means and their differences as a table for the terminal."""
    from rich.text import Text

    caption = "percent; differences in points of harmonic mean to the row in bold"
    if any(row["chosen_on_test"] for part in summary["tables"] for row in part["rows"]):
        caption += f"\n{_MARK} {FOOTNOTE}"
    shown = style.terminal_table("variant", 34, title="PromptKD, ablations", caption=caption)
    for head in ("harmonic\nmean", "difference", "p", "paper's\ndifference"):
        shown.add_column(head, justify="right", no_wrap=True)
    for part in summary["tables"]:
        shown.add_row(Text(part["title"], style="italic"))
        for row in part["rows"]:
            change = row["difference"] or {}
            cells = [_label(row), _spread(row["hm"]), _spread(change, "+"), _p(change.get("p"))]
            cells.append(_number(row["paper_difference"], "+"))
            shown.add_row(*map(Text, cells), style="bold" if row["reference"] else "")
        shown.add_section()
    return shown


def figure(summary: Summary) -> bytes:
    """Draw the differences to the reference, ours beside the paper's, one line per row.

    Returns:
        A PNG picture, the same bytes for the same summary.
    """
    lines = [line for part in summary["tables"] for line in (part["title"], *part["rows"])]
    rows = {place: line for place, line in enumerate(lines) if isinstance(line, Mapping)}
    ours = {place: row["difference"] or {} for place, row in rows.items()}
    paper = {place: {"mean": row["paper_difference"]} for place, row in rows.items()}

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        _decorate(axes, lines, seeds=len(summary["seeds"]))
        _series(axes, "● embedded", ours, 0.16, 76, color=style.BLUE)
        _series(axes, "○ paper", paper, -0.16, 130, color=style.VERMILION, markerfacecolor="white")

    return style.png(draw, height=1.2 + 0.29 * len(lines))


def _entry(path: Path, value: object, seed: int) -> Mapping[str, Any]:
    if not isinstance(value, dict) or str(seed) not in value:
        raise BadArtifact(f"'{path}' has no seed '{seed}'; {_REMEDY}")
    entry = value[str(seed)]
    if not isinstance(entry, dict) or not isinstance(entry.get(_SELECTION, ""), str):
        raise BadArtifact(f"seed '{seed}' in '{path}' is '{entry}'; {_REMEDY}")
    return entry


def _scores(path: Path, entry: Mapping[str, Any], seed: int, who: str) -> Scores:
    scores: Any = entry.get(who)
    for key in KEYS:
        number: Any = scores.get(key) if isinstance(scores, dict) else None
        if type(number) not in (int, float) or not 0 <= number <= 100:
            raise BadArtifact(f"'{seed}.{who}.{key}' in '{path}' is '{number}'; {_REMEDY}")
    return dict(scores)


def _summarise_row(results: Results, row: Row, reference: Row) -> dict[str, Any]:
    own, other = _averages(results, row), _averages(results, reference)
    changes = [mine["hm"] - theirs["hm"] for mine, theirs in zip(own, other, strict=True)]
    p = _paired_test(_harmonic_means(results, row), _harmonic_means(results, reference))
    paper, default = _paper(row), _paper(reference)
    both = row is not reference and paper and default
    return {
        "label": row.label,
        "variant": row.variant,
        "who": row.who,
        "reference": row is reference,
        # the note is on the student's checkpoint; the teacher's was not chosen
        "chosen_on_test": row.who != "teacher" and row.variant in results.chosen_on_test,
        **{key: _statistics([average[key] for average in own]) for key in KEYS},
        "difference": None if row is reference else {**_statistics(changes), "p": p},
        "paper": paper,
        "paper_difference": _rounded(paper["hm"] - default["hm"]) if both else None,
    }


def _averages(results: Results, row: Row) -> list[dict[str, float]]:
    return [
        average([results.scores[row.variant, row.who, name, seed] for name in results.datasets])
        for seed in results.seeds
    ]


def _harmonic_means(results: Results, row: Row) -> list[float]:
    pairs = product(results.datasets, results.seeds)
    return [results.scores[row.variant, row.who, *pair]["hm"] for pair in pairs]


def _statistics(values: Sequence[float]) -> dict[str, float | None]:
    spread = _rounded(stdev(values)) if len(values) > 1 else None
    return {"mean": _rounded(fmean(values)), "sd": spread}


def _paired_test(own: Sequence[float], other: Sequence[float]) -> float | None:
    from scipy.stats import ttest_rel

    if own == other:
        return 1.0  # nothing differs; the test would divide zero by zero
    if len(own) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all but equal
        return round(float(ttest_rel(own, other).pvalue), 4)


def _paper(row: Row) -> dict[str, Any]:
    if row.paper is None:
        return {}
    values = (None, None, row.paper) if isinstance(row.paper, int | float) else row.paper
    return dict(zip(KEYS, values, strict=True))


def _rounded(value: float) -> float:
    return round(value, 2) + 0.0  # a zero has no sign


def _introduction(datasets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    several, pairs = len(seeds) > 1, len(datasets) * len(seeds)
    return [
        "# Ablations",
        "",
        f"Data sets: {', '.join(datasets)}.",
        f"{'Seeds' if several else 'Seed'}: {', '.join(map(str, seeds))}.",
        "The models are the tiny embedded CLIPs, not the paper's: the signs and the order of the",
        "differences can be compared with the paper's, their sizes cannot.",
        "",
        "Accuracy in percent. In each seed, base and novel accuracy are averaged over the data",
        "sets, and the harmonic mean is that of the two averages, as in the paper's Table 1.",
        *(["Shown are mean ± sample standard deviation over the seeds."] if several else []),
        "Differences are in points of harmonic mean to the row in bold, taken seed by seed. p is",
        f"that of a two-sided paired t-test on the harmonic means of the {pairs} pairs of data set",
        "and seed; it takes them as independent and is not corrected for the number of rows.",
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    change, paper = row["difference"], row["paper"]
    cells = [
        _label(row).replace("|", r"\|"),
        _number(row["base"]["mean"]),
        _number(row["novel"]["mean"]),
        _spread(row["hm"]),
        f"{_spread(change, '+')} (p {_p(change['p'], '= ')})" if change else _NONE,
        " / ".join(_number(paper[key]) for key in KEYS if paper.get(key) is not None) or _NONE,
        _number(row["paper_difference"], "+"),
    ]
    return [f"**{cell}**" if row["reference"] and cell != _NONE else cell for cell in cells]


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['label']} {_MARK}" if row["chosen_on_test"] else str(row["label"])


def _number(value: float | None, sign: str = "") -> str:
    return _NONE if value is None else f"{value:{sign}.2f}"


def _spread(value: Spread, sign: str = "") -> str:
    number, spread = _number(value.get("mean"), sign), value.get("sd")
    return number if spread is None else f"{number} ± {spread:.2f}"


def _p(value: float | None, equals: str = "") -> str:
    if value is None:
        return _NONE
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _decorate(axes: Axes, lines: Sequence[Any], *, seeds: int) -> None:
    names = ["" if isinstance(line, str) else _label(line) for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=9.5)
    for place, line in enumerate(lines):
        if isinstance(line, str):
            axes.axhspan(place - 0.45, place + 0.45, color=_BAND, zorder=2)
            _write(axes, (0.0, place), line, 5, color=style.INK, fontweight="bold")
        elif line["reference"]:
            axes.get_yticklabels()[place].set_fontweight("bold")
            axes.plot(0, place, "s", color=style.INK, markersize=5, zorder=4)
    axes.axvline(0, color=style.INK, linewidth=1, zorder=1.8)  # above the grid, below the titles
    axes.set_ylim(len(lines) - 0.4, -0.6)
    style.bare(axes)
    bars = "; bars: standard deviation over the seeds" if seeds > 1 else ""
    note = f"\n{_MARK} {FOOTNOTE}" if any(name.endswith(_MARK) for name in names) else ""
    axes.set_xlabel(
        f"difference in harmonic mean to the row in bold, points{bars}{note}", c=style.INK
    )


def _series(
    axes: Axes, name: str, values: Mapping[int, Spread], lift: float, column: int, **look: Any
) -> None:
    _write(axes, (1.0, -1), name, column, ha="right", color=look["color"])
    for place, value in values.items():
        mean, spread = value.get("mean"), value.get("sd")
        if mean is not None:
            axes.errorbar(mean, place - lift, xerr=spread, fmt="o", ms=5.5, zorder=4, **look)
            text = f"{mean:+.2f}".replace("-", "−")
            _write(axes, (1.0, place), text, column, ha="right", color=look["color"])


def _write(axes: Axes, at: tuple[float, int], text: str, right: int, **look: Any) -> None:
    beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(text, at, (right, 0), va="center_baseline", fontsize=9.5, **beside, **look)
