"""The ablations: each variant's difference to the default, beside the paper's for the same change.

All files are functions of the measurements alone, to the byte: no times, hosts or versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pd_core.core.artifacts import read_json, write_json, write_text
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.scores import LEGEND, sign
from pd_core.evaluation.significance import LEAST_DATASETS, over_datasets
from pd_core.reporting.figures import FOOTNOTE, MARK, ablation_differences, label_of
from pd_core.reporting.results import (
    KEYS,
    Scores,
    Summary,
    average,
    mean_and_deviation,
    p_value,
    scores_of,
    with_deviation,
)
from pd_core.reporting.tables import NONE, Kind, Row, Table

if TYPE_CHECKING:
    from pd_core.pipeline.ablations import AblationRow, AblationTable

_REMEDY = "run `make ablations`"
_SELECTION, _ZERO_SHOT = "selection", "zero_shot_student"
_PAPER = "paper: base / novel / harmonic mean"
_HEADS = ("", "base", "novel", "harmonic mean", "difference", _PAPER, "paper: difference")


@dataclass(frozen=True)
class Results:
    """Measurements of all variants."""

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[tuple[str, str, str, int], Scores]  # by variant, model, data set and seed
    chosen_on_test: frozenset[str]  # the variants with a checkpoint chosen on test images


def run(
    results: Path,
    folder: Path,
    *,
    tables: Sequence[AblationTable],
    datasets: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Write `summary.json`, `summary.md` and `summary.png`; return the summary.

    Args:
        results: holds `<variant>/<data set>/metrics.json`.
        folder: output folder; replaced.
        tables: the ablations to report.
        datasets: to average over.
        seeds: to average over.

    Raises:
        PdError: as of `read` and `summarise`, or the folder cannot be written.
    """
    summary = summarise(read(results, tables=tables, datasets=datasets, seeds=seeds), tables)
    write(summary, folder)
    return summary


def write(summary: Summary, folder: Path) -> None:
    """Write a summary's three files."""
    with write_folder(folder) as new:
        write_json(new / "summary.json", summary)
        write_text(new / "summary.md", markdown(summary))
        (new / "summary.png").write_bytes(ablation_differences(summary))


def read(
    results: Path, *, tables: Sequence[AblationTable], datasets: Sequence[str], seeds: Sequence[int]
) -> Results:
    """Read what the tables show, and ignore other measurements.

    Raises:
        MissingFile: a variant was not run on a data set.
        BadArtifact: a file lacks a seed or a number.
        BadParams: there is no data set or no seed.
    """
    if not datasets or not seeds:
        raise BadParams("the ablations need at least one data set and one seed")
    models: dict[str, list[str]] = {}
    for variant, model in sorted({(row.variant, row.who) for part in tables for row in part.rows}):
        models.setdefault(variant, []).append(model)
    scores: dict[tuple[str, str, str, int], Scores] = {}
    chosen = set()
    for variant, name in product(models, datasets):
        path = results / variant / name / "metrics.json"
        content = read_json(path, what=f"result of '{variant}' on '{name}'", remedy=_REMEDY)
        for seed in seeds:
            entry = _entry(path, content, str(seed))
            if _SELECTION in entry:
                chosen.add(variant)
            wanted = {*models[variant], *({_ZERO_SHOT} & set(entry))}
            numbers = scores_of(entry, wanted, KEYS, path=path, remedy=_REMEDY, seed=str(seed))
            scores |= {(variant, model, name, seed): row for model, row in numbers.items()}
    return Results(tuple(datasets), tuple(seeds), scores, frozenset(chosen))


def _entry(path: Path, content: object, seed: str) -> Mapping[str, Any]:
    if not isinstance(content, dict) or seed not in content:
        raise BadArtifact(f"'{path}' has no seed '{seed}'; {_REMEDY}")
    entry = content[seed]
    if not isinstance(entry, dict) or not isinstance(entry.get(_SELECTION, ""), str):
        raise BadArtifact(f"seed '{seed}' in '{path}' is '{entry}'; {_REMEDY}")
    return entry


def summarise(results: Results, tables: Sequence[AblationTable]) -> dict[str, Any]:
    """Average the scores and compare each row with its table's reference.

    Means and sample standard deviations are over the seeds; differences are of `hm`, seed by seed.
    `p` is of Wilcoxon's signed-rank test over the data sets, each with the mean of its seeds.

    Returns:
        `datasets`, `seeds`, and `tables` with `title`, `source` and `rows`; a row has `label`,
        `variant`, `who`, `reference`, `chosen_on_test`, `{base,novel,hm}.{mean,sd}`,
        `difference.{mean,sd,p}`, `paper.{base,novel,hm}` and `paper_difference`. What does not
        exist is None. Percent and points have two decimals, `p` has four. A student worse than the
        reference's zero-shot one, where that was measured, has `worse`.

    Raises:
        BadParams: a table lacks its reference.
    """
    parts = []
    for part in tables:
        rows = [_summarise_row(results, row, part.reference_row) for row in part.rows]
        parts.append({"title": part.title, "source": part.source, "rows": rows})
    return {"datasets": list(results.datasets), "seeds": list(results.seeds), "tables": parts}


def _summarise_row(results: Results, row: AblationRow, reference: AblationRow) -> dict[str, Any]:
    own, other = _averages(results, row), _averages(results, reference)
    changes = [mean["hm"] - base["hm"] for mean, base in zip(own, other, strict=True)]
    p = over_datasets(_by_dataset(results, row), _by_dataset(results, reference)).p
    paper, default = _paper(row), _paper(reference)
    comparable = row is not reference and paper and default
    return {
        "label": row.label,
        "variant": row.variant,
        "who": row.who,
        "reference": row is reference,
        # the note is on the student's checkpoint; the teacher's was not chosen
        "chosen_on_test": row.who != "teacher" and row.variant in results.chosen_on_test,
        **({"worse": True} if _is_worse(results, row, reference) else {}),
        **{key: _statistics([means[key] for means in own]) for key in KEYS},
        "difference": None
        if row is reference
        else {**_statistics(changes), "p": None if p is None else round(p, 4)},
        "paper": paper,
        "paper_difference": round(paper["hm"] - default["hm"], 2) + 0.0 if comparable else None,
    }


def _is_worse(results: Results, row: AblationRow, reference: AblationRow) -> bool:
    """Compare a student with the reference's zero-shot one, by the means over seeds."""
    before = reference.model_copy(update={"who": _ZERO_SHOT})
    measured = {key[:2] for key in results.scores}
    if row.who != "student" or (before.variant, _ZERO_SHOT) not in measured:
        return False
    student, zero_shot = (
        fmean(means["hm"] for means in _averages(results, part)) for part in (row, before)
    )
    return student < zero_shot


def _averages(results: Results, row: AblationRow) -> list[dict[str, float]]:
    """Average a row over the data sets, for each seed."""
    return [
        average([results.scores[row.variant, row.who, name, seed] for name in results.datasets])
        for seed in results.seeds
    ]


def _by_dataset(results: Results, row: AblationRow) -> dict[str, list[float]]:
    return {
        name: [results.scores[row.variant, row.who, name, seed]["hm"] for seed in results.seeds]
        for name in results.datasets
    }


def _statistics(values: Sequence[float]) -> dict[str, float | None]:
    return dict(zip(("mean", "sd"), mean_and_deviation(values), strict=True))


def _paper(row: AblationRow) -> dict[str, Any]:
    if row.paper is None:
        return {}
    values = (None, None, row.paper) if isinstance(row.paper, int | float) else row.paper
    return dict(zip(KEYS, values, strict=True))


def markdown(summary: Summary) -> str:
    """Return the summary as Markdown: data sets and seeds, then one section per ablation."""
    lines = _introduction(summary)
    for part in summary["tables"]:
        table = Table(_HEADS, [_markdown_row(row) for row in part["rows"]])
        lines += ["", f"## {part['title']}", "", f"Source: {part['source']}.", "", table.markdown()]
        for line in _legends(part["rows"]):
            lines += ["", line]
    return "\n".join(lines) + "\n"


def _introduction(summary: Summary) -> list[str]:
    datasets, seeds = summary["datasets"], summary["seeds"]
    several = len(seeds) > 1
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
        "Differences are in points of harmonic mean to the row in bold, taken seed by seed.",
        *_about_p(summary),
    ]


def _about_p(summary: Summary) -> list[str]:
    if _tested(summary):
        return [
            "p is of Wilcoxon's signed-rank test over the data sets, each with the mean of its",
            "seeds; it is not corrected for the number of rows.",
        ]
    return [
        "There is no p-value: the test's units are data sets, each with the mean of its seeds, and",
        f"{len(summary['datasets'])} of them are too few; it takes {LEAST_DATASETS}.",
    ]


def _tested(summary: Summary) -> bool:
    """Return True if there are p-values: all rows are of the same data sets."""
    rows = (row for part in summary["tables"] for row in part["rows"])
    return any(row["difference"] and row["difference"]["p"] is not None for row in rows)


def _markdown_row(row: Mapping[str, Any]) -> Row:
    change, paper = row["difference"], row["paper"]
    p = "" if change is None or change["p"] is None else f" ({p_value(change['p'])})"
    cells = (
        label_of(row),
        _number(row["base"]["mean"]),
        _number(row["novel"]["mean"]),
        _spread(row["hm"]) + _sign(row),
        f"{_spread(change, '+')}{p}" if change else NONE,
        " / ".join(_number(paper[key]) for key in KEYS if paper.get(key) is not None) or NONE,
        _number(row["paper_difference"], "+"),
    )
    return Row(cells, Kind.REFERENCE if row["reference"] else Kind.PLAIN)


def table(summary: Summary) -> Table:
    """Return the harmonic means and their differences."""
    tested = _tested(summary)
    rows = []
    for part in summary["tables"]:
        rows.append(Row((part["title"],), Kind.HEADING))
        for row in part["rows"]:
            change = row["difference"] or {}
            p = [_p(change.get("p"))] if tested else []
            numbers = _spread(row["hm"]) + _sign(row), _spread(change, "+"), *p
            cells = (label_of(row), *numbers, _number(row["paper_difference"], "+"))
            rows.append(Row(cells, Kind.REFERENCE if row["reference"] else Kind.PLAIN))
    notes = ["percent; differences in points of harmonic mean to the row in bold"]
    if not tested:
        notes.append(f"no p-value: it takes {LEAST_DATASETS} data sets")
    notes += _legends([row for part in summary["tables"] for row in part["rows"]])
    heads = ("harmonic\nmean", "difference", *(["p"] if tested else []), "paper's\ndifference")
    return Table(("variant", *heads), rows, title="PromptKD, ablations", notes=notes, name_width=34)


def _legends(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines below a table about the signs in it."""
    chosen = [f"{MARK} {FOOTNOTE}"] if any(row["chosen_on_test"] for row in rows) else []
    return [*chosen, *([LEGEND] if any(map(_sign, rows)) else [])]


def _sign(row: Mapping[str, Any]) -> str:
    return sign(row.get("worse", False))


def _number(value: float | None, sign: str = "") -> str:
    return NONE if value is None else f"{value:{sign}.2f}"


def _spread(value: Mapping[str, float | None], sign: str = "") -> str:
    return with_deviation(_number(value.get("mean"), sign), value.get("sd"))


def _p(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
