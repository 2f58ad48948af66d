"""Comparison of two states of the project: parameters, metrics and their significance.

Nothing is computed anew: compared are the outputs of stages and the records of runs, of git
revisions, MLflow runs or model versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pd_core.core.errors import BadArtifact, BadParams, PdError
from pd_core.core.scores import LEGEND, mark
from pd_core.evaluation.significance import Paired, harmonic_mean_test, over_datasets, paired
from pd_core.reporting.predictions import Predictions
from pd_core.reporting.results import KEYS, average, rounded
from pd_core.reporting.tables import NONE, Column, Table

PARAMS, LOCK, PREDICTIONS = "params.yaml", "dvc.lock", "predictions.json"

WORKSPACE = "workspace"
"""Name of the state of the project's files, as in DVC."""

Params = Mapping[str, Any]  # dotted name -> value
Scores = Mapping[str, Mapping[str, float]]  # model -> metric -> percent

_SIDES = ("first", "second")
_TESTS = """\
p       of a data set: McNemar's test on its test images, for hm a permutation test;
        of the average: Wilcoxon's test over three data sets or more;
        not corrected for the many rows"""


@dataclass(frozen=True)
class Measured:
    """Parameters and results of one data set, for one seed."""

    dataset: str  # without the seed
    params: Params  # in force for it, overrides included
    scores: Scores = field(default_factory=dict)  # empty if nothing was measured
    predictions: Callable[[], Predictions] | None = None  # reads them; raises `PdError`
    absent: str = ""  # why there are no scores
    source: str = ""  # file of the scores, if they are not those of the stages
    pictures: str | None = None  # fingerprint of its images, if there is one


@dataclass(frozen=True)
class Side:
    """A git revision, the workspace, an MLflow run or a model version."""

    given: str  # by the user
    kind: str  # `revision`, `run` or `version`
    name: str  # the commit, `workspace`, the run's id, or `promptkd-<data set>/<number>`
    measured: Mapping[str, Measured]  # by data set, or `<data set>-<seed>`

    @property
    def title(self) -> str:
        """Its readable name."""
        if self.name == WORKSPACE:
            return WORKSPACE
        return f"{self.kind} {self.name}" + ("" if self.given in self.name else f" ({self.given})")


Pairs = Mapping[str, tuple[Measured, Measured]]  # by data set


@dataclass(frozen=True)
class ParamDifference:
    """A parameter that differs."""

    name: str  # dotted
    first: Any  # None if it is not set
    second: Any
    datasets: tuple[str, ...]  # for which these values are in force


@dataclass(frozen=True)
class MetricDifference:
    """A metric that differs."""

    dataset: str | None  # None for the average
    who: str  # the model
    metric: str  # `base`, `novel`, `hm`, `all`, ...
    first: float  # percent
    second: float
    p: float | None = None  # that so great a difference is chance; None if there is no test
    pairs: int | None = None  # test images, or data sets for the average, that `p` is from
    signs: tuple[str, str] = ("", "")  # of a student that is worse than its side's zero-shot one

    @property
    def difference(self) -> float:
        """The second number less the first, in points."""
        return round(self.second - self.first, 4)

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        names = ("who", "metric", "first", "second", "difference", "p", "pairs")
        row = {name: getattr(self, name) for name in names}
        return row if self.dataset is None else {"dataset": self.dataset, **row}


@dataclass(frozen=True)
class Comparison:
    """Two sides, and the parameters and metrics that differ."""

    first: Side
    second: Side
    datasets: tuple[str, ...]  # of both
    params: tuple[ParamDifference, ...]
    metrics: tuple[MetricDifference, ...]  # by data set
    averages: tuple[MetricDifference, ...]  # over the data sets that both have measured
    notes: tuple[str, ...]  # what is not compared, and why; one line each

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        sides = {"first": self.first, "second": self.second}
        return {
            **{
                name: {"given": side.given, "kind": side.kind, "name": side.name}
                for name, side in sides.items()
            },
            "datasets": self.datasets,
            "params": [vars(row) for row in self.params],
            "metrics": [row.as_dict() for row in self.metrics],
            "averages": [row.as_dict() for row in self.averages],
            "notes": self.notes,
        }

    def tables(self) -> list[Table]:
        """Return tables of the parameters and the metrics that differ, if any do."""
        params = [
            (row.name, _text(row.first), _text(row.second), self._listed(row.datasets))
            for row in self.params
        ]
        metrics = [
            (
                row.dataset or "average", row.who, row.metric, f"{row.first:.2f}{row.signs[0]}",
                f"{row.second:.2f}{row.signs[1]}", f"{row.difference:+.2f}", _p(row.p),
                _text(row.pairs),
            )
            for row in (*self.metrics, *self.averages)
        ]  # fmt: skip
        words = [Column(head, words=True) for head in ("first", "second", "data sets")]
        models = [Column(head, words=True) for head in ("who", "metric")]
        tables = [
            Table(("parameter", *words), params),
            Table(("data set", *models, "first", "second", "difference", "p", "pairs"), metrics),
        ]
        return [table for table in tables if table.rows]

    def remarks(self) -> list[str]:
        """Return the lines below the tables."""
        rows = (*self.metrics, *self.averages)
        return [
            *([] if self.params else ["no parameter that both know differs"]),
            *([_TESTS] if rows else []),
            *([LEGEND] if any(sign for row in rows for sign in row.signs) else []),
            *(f"note    {note}" for note in self.notes),
        ]

    def _listed(self, names: Sequence[str]) -> str:
        """Name some data sets, or those that are left out if these are fewer."""
        others = [name for name in self.datasets if name not in names]
        if not others:
            return "all"
        return f"all but {', '.join(others)}" if len(others) < len(names) else ", ".join(names)


def _text(value: object) -> str:
    return NONE if value is None else str(value)


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


class _Notes(dict[str, list[str]]):
    """Reasons, each with its data sets."""

    def add(self, reason: str, dataset: str) -> None:
        self.setdefault(reason, []).append(dataset)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{reason}: {', '.join(dict.fromkeys(of))}" for reason, of in self.items())


def compare(first: Side, second: Side) -> Comparison:
    """Compare two sides on the data sets that both have.

    Raises:
        BadParams: they share none.
    """
    shared = sorted(set(first.measured) & set(second.measured))
    if not shared:
        names = [", ".join(sorted(side.measured)) or "none" for side in (first, second)]
        raise BadParams(
            f"'{first.given}' and '{second.given}' share no data set; the first has {names[0]}, "
            f"the second {names[1]}; give two of the same"
        )
    notes = _Notes()
    pairs = {name: (first.measured[name], second.measured[name]) for name in shared}
    alike = first.kind == second.kind
    params = _params(pairs, complete=alike and first.kind != "version", notes=notes)
    measured = _measured_on_both(pairs, notes)
    metrics = [row for name, pair in measured.items() for row in _metrics(name, *pair, notes)]
    for name in sorted(set(first.measured) ^ set(second.measured)) if alike else ():
        notes.add("known of one side only", name)
    averages = tuple(_averages(measured)) if len(measured) > 1 else ()
    return Comparison(
        first, second, tuple(shared), tuple(params), tuple(metrics), averages, notes.lines()
    )


def _params(pairs: Pairs, *, complete: bool, notes: _Notes) -> list[ParamDifference]:
    """Find the parameters that differ, and note which only one side has.

    If `complete`, one that a side lacks is not set there, rather than not known.
    """
    differences: dict[str, tuple[str, Any, Any, list[str]]] = {}
    for dataset, (first, second) in pairs.items():
        apart = set(first.params) ^ set(second.params)
        both = set(map(_block, first.params)) & set(map(_block, second.params))
        unknown = {name for name in apart if not complete or _block(name) not in both}
        if unknown:
            blocks = ", ".join(f"`{block}`" for block in sorted(set(map(_block, unknown))))
            notes.add(f"not all parameters of {blocks} are known of both sides", dataset)
        for name in sorted((set(first.params) | set(second.params)) - unknown):
            values = first.params.get(name), second.params.get(name)
            if values[0] != values[1]:
                entry = differences.setdefault(repr((name, values)), (name, *values, []))
                entry[-1].append(dataset)
    return [ParamDifference(*entry[:-1], tuple(entry[-1])) for entry in differences.values()]


def _block(name: str) -> str:
    return name.partition(".")[0]


def _measured_on_both(pairs: Pairs, notes: _Notes) -> Pairs:
    for dataset, pair in pairs.items():
        lacking = {
            side: part.absent for side, part in zip(_SIDES, pair, strict=True) if not part.scores
        }
        for reason in dict.fromkeys(lacking.values()):
            sides = [f"the {side}" for side, other in lacking.items() if other == reason]
            notes.add(f"no metrics on {' and '.join(sides)} side, {reason}", dataset)
        for side, part in zip(_SIDES, pair, strict=True):
            if part.source:
                notes.add(f"metrics on the {side} side are those of {part.source}", dataset)
    return {name: pair for name, pair in pairs.items() if all(part.scores for part in pair)}


def _metrics(
    dataset: str, first: Measured, second: Measured, notes: _Notes
) -> Iterator[MetricDifference]:
    differences = [
        row
        for model in first.scores
        for row in _differing(dataset, model, first.scores, second.scores)
    ]
    if not differences:
        notes.add("the same metrics on both sides", dataset)
        return
    try:
        predictions = _paired_predictions(first, second)
    except PdError as error:
        notes.add(f"no significance, {error}", dataset)
        yield from differences
        return
    for row in differences:
        p, pairs = _significance(*predictions, row.who, row.metric)
        if pairs is None:
            notes.add(f"no predictions of single images for {row.who}'s {row.metric}", dataset)
        yield replace(row, p=p, pairs=pairs)


def _differing(
    dataset: str | None, model: str, first: Scores, second: Scores
) -> Iterator[MetricDifference]:
    """Find the metrics that differ in the two decimals that everything that records them keeps."""
    scores, others = first[model], second.get(model, {})
    shared = set(scores) & set(others)
    for metric in (*(key for key in KEYS if key in shared), *sorted(shared - set(KEYS))):
        if f"{scores[metric]:.2f}" != f"{others[metric]:.2f}":
            signs = mark(model, first, metric), mark(model, second, metric)
            values = scores[metric], others[metric]
            yield MetricDifference(dataset, model, metric, *values, signs=signs)


def _paired_predictions(first: Measured, second: Measured) -> tuple[Predictions, Predictions]:
    """Read the predictions of both sides.

    Images of the same path and label are the same, unless the data sets' fingerprints differ.

    Raises:
        PdError: the predictions are not at hand, or not of the same images.
    """
    if first.pictures and second.pictures and first.pictures != second.pictures:
        raise BadArtifact("other images, by their fingerprint")
    pair = _predictions("first", first), _predictions("second", second)
    if pair[0].paths != pair[1].paths or (pair[0].labels != pair[1].labels).any():
        raise BadArtifact("other test images")
    return pair


def _predictions(name: str, side: Measured) -> Predictions:
    try:
        if side.predictions is None:
            raise BadArtifact("no predictions are kept")
        predictions = side.predictions()
        if not all(predictions.fit(model, scores) for model, scores in side.scores.items()):
            raise BadArtifact("the predictions are not those that the metrics were counted of")
    except PdError as error:
        raise BadArtifact(f"on the {name} side {error}") from None
    return predictions


def _significance(
    first: Predictions, second: Predictions, model: str, metric: str
) -> tuple[float | None, int | None]:
    """Return p and the number of images, or None where single images are not counted."""

    def pair(part: str) -> Paired | None:
        hits = first.right(model, part), second.right(model, part)
        return None if hits[0] is None or hits[1] is None else paired(hits[0], hits[1])

    if metric != "hm":
        counted = pair(metric)
        return (None, None) if counted is None else (counted.mcnemar(), counted.pictures)
    base, novel = pair("base"), pair("novel")
    if base is None or novel is None or not base.pictures or not novel.pictures:
        return None, None
    return harmonic_mean_test(base, novel), base.pictures + novel.pictures


def _averages(measured: Pairs) -> Iterator[MetricDifference]:
    """Average as every table does; test over the data sets."""
    for model in dict.fromkeys(model for pair in measured.values() for model in pair[0].scores):
        halves = [
            pair for pair in measured.values() if all(_has_halves(side, model) for side in pair)
        ]
        if len(halves) < 2:
            continue
        sides = list(zip(*halves, strict=True))
        for row in _differing(None, model, *map(_means, sides)):
            overall = over_datasets(*(_by_dataset(model, row.metric, rows) for rows in sides))
            yield replace(row, p=overall.p, pairs=overall.datasets)


def _has_halves(side: Measured, model: str) -> bool:
    return set(KEYS) <= set(side.scores.get(model, {}))


def _means(rows: Sequence[Measured]) -> Scores:
    """Average the models that all data sets of a side have."""
    return {
        model: rounded(average([row.scores[model] for row in rows]))
        for model in rows[0].scores
        if all(_has_halves(row, model) for row in rows)
    }


def _by_dataset(model: str, metric: str, rows: Sequence[Measured]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.dataset, []).append(row.scores[model][metric])
    return scores
