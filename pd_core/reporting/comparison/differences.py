"""What differs between two sides, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pd_core.core.errors import BadArtifact, BadParams, PdError
from pd_core.evaluation.significance import Paired, harmonic_mean_test, over_datasets, paired
from pd_core.reporting.comparison.sides import Measured, Predictions, Scores, Side
from pd_core.reporting.results import KEYS, summarise

Pairs = Mapping[str, tuple[Measured, Measured]]  # by data set

_PLACES = ("first", "second")


@dataclass(frozen=True)
class ParamDifference:
    """A parameter that differs.

    Attributes:
        name: dotted.
        first: its value on the first side; None if it is not set.
        second: on the second side.
        datasets: for which data sets these values are in force.
    """

    name: str
    first: Any
    second: Any
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class MetricDifference:
    """A metric that differs.

    Attributes:
        dataset: a data set; None for the average.
        who: `student`, `teacher`, ...
        metric: `base`, `novel`, `hm`, `all`, ...
        first: percent, on the first side.
        second: percent, on the second side.
        p: that so great a difference is chance; None if it cannot be said.
        pairs: test pictures, or data sets for the average, that `p` is from.
    """

    dataset: str | None
    who: str
    metric: str
    first: float
    second: float
    p: float | None = None
    pairs: int | None = None

    @property
    def difference(self) -> float:
        """Of the second from the first, in points."""
        return round(self.second - self.first, 4)


@dataclass(frozen=True)
class Comparison:
    """Two sides beside each other.

    Attributes:
        first: one side.
        second: the other.
        datasets: that both know.
        params: those that differ.
        metrics: those that differ, data set by data set.
        averages: those that differ, over the data sets that both have measured.
        notes: what cannot be said, and why; one line each.
    """

    first: Side
    second: Side
    datasets: tuple[str, ...]
    params: tuple[ParamDifference, ...]
    metrics: tuple[MetricDifference, ...]
    averages: tuple[MetricDifference, ...]
    notes: tuple[str, ...]


@dataclass
class _Notes:
    """Reasons, each with the data sets that it is given for."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, dataset: str) -> None:
        self.reasons.setdefault(reason, []).append(dataset)

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{reason}: {', '.join(dict.fromkeys(names))}" for reason, names in self.reasons.items()
        )


def compare(first: Side, second: Side) -> Comparison:
    """Compare two sides on the data sets that both know.

    Raises:
        BadParams: they share none.
    """
    shared = sorted(set(first.measured) & set(second.measured))
    if not shared:
        there = [", ".join(sorted(side.measured)) or "none" for side in (first, second)]
        raise BadParams(
            f"'{first.given}' and '{second.given}' share no data set; the first has {there[0]}, "
            f"the second {there[1]}; give two of the same"
        )
    notes = _Notes()
    pairs = {name: (first.measured[name], second.measured[name]) for name in shared}
    alike = first.kind == second.kind
    params = _params(pairs, complete=alike and first.kind != "version", notes=notes)
    known = _measured_on_both(pairs, notes)
    metrics = [one for name, pair in known.items() for one in _metrics(name, *pair, notes)]
    for name in sorted(set(first.measured) ^ set(second.measured)) if alike else ():
        notes.add("known of one side only", name)
    return Comparison(
        first,
        second,
        tuple(shared),
        tuple(params),
        tuple(metrics),
        tuple(_averages(known)) if len(known) > 1 else (),
        notes.lines(),
    )


def _params(pairs: Pairs, *, complete: bool, notes: _Notes) -> list[ParamDifference]:
    """Find the parameters that differ.

    Args:
        pairs: both sides, by data set.
        complete: whether a parameter that one side lacks is not set there, rather than not known.
        notes: gets what is known of one side only.
    """
    found: dict[str, tuple[str, Any, Any, list[str]]] = {}
    for dataset, (first, second) in pairs.items():
        apart = set(first.params) ^ set(second.params)
        both = {_block(name) for name in first.params} & {_block(name) for name in second.params}
        unknown = {name for name in apart if not complete or _block(name) not in both}
        if unknown:
            blocks = ", ".join(f"`{block}`" for block in sorted(set(map(_block, unknown))))
            notes.add(f"not all parameters of {blocks} are known of both sides", dataset)
        for name in sorted((set(first.params) | set(second.params)) - unknown):
            values = first.params.get(name), second.params.get(name)
            if values[0] != values[1]:
                entry = found.setdefault(repr((name, values)), (name, *values, []))
                entry[-1].append(dataset)
    return [
        ParamDifference(name, one, other, tuple(datasets))
        for name, one, other, datasets in found.values()
    ]


def _block(name: str) -> str:
    return name.partition(".")[0]


def _measured_on_both(pairs: Pairs, notes: _Notes) -> Pairs:
    for dataset, pair in pairs.items():
        lacking = {
            place: one.absent for place, one in zip(_PLACES, pair, strict=True) if not one.scores
        }
        for reason in dict.fromkeys(lacking.values()):
            places = [f"the {place}" for place, other in lacking.items() if other == reason]
            notes.add(f"no metrics on {' and '.join(places)} side, {reason}", dataset)
    return {name: pair for name, pair in pairs.items() if all(one.scores for one in pair)}


def _metrics(
    dataset: str, first: Measured, second: Measured, notes: _Notes
) -> Iterator[MetricDifference]:
    differences = list(_differing(dataset, first.scores, second.scores))
    if not differences:
        notes.add("the same metrics on both sides", dataset)
        return
    try:
        test = _tests(first, second)
    except PdError as error:
        notes.add(f"significance cannot be said, {error}", dataset)
        yield from differences
        return
    for one in differences:
        found = test(one.who, one.metric)
        if found is None:
            notes.add(f"no prediction of single pictures for {one.who}'s {one.metric}", dataset)
            yield one
        else:
            yield MetricDifference(
                dataset, one.who, one.metric, one.first, one.second, found[0], found[1]
            )


def _differing(dataset: str | None, first: Scores, second: Scores) -> Iterator[MetricDifference]:
    """Find the metrics that differ in the two decimals that everything that records them keeps."""
    for who, scores in first.items():
        for metric in sorted(set(scores) & set(second.get(who, {})), key=_order):
            one, other = scores[metric], second[who][metric]
            if f"{one:.2f}" != f"{other:.2f}":
                yield MetricDifference(dataset, who, metric, one, other)


def _order(metric: str) -> tuple[int, str]:
    return KEYS.index(metric) if metric in KEYS else len(KEYS), metric


def _tests(first: Measured, second: Measured) -> Callable[[str, str], tuple[float, int] | None]:
    """Return what gives p and the number of pictures for who and metric.

    Pictures of the same path and label are the same, unless the data sets' fingerprints differ.

    Raises:
        PdError: the predictions are not at hand, or not of the same pictures.
    """
    if first.pictures and second.pictures and first.pictures != second.pictures:
        raise BadArtifact("the pictures are others, by their fingerprint")
    one, other = (_predictions(*part) for part in zip(_PLACES, (first, second), strict=True))
    if one.paths != other.paths or (one.labels != other.labels).any():
        raise BadArtifact("the test pictures are others")

    def pair(who: str, metric: str) -> Paired | None:
        mine, theirs = one.right(who, metric), other.right(who, metric)
        return None if mine is None or theirs is None else paired(mine, theirs)

    def test(who: str, metric: str) -> tuple[float, int] | None:
        if metric != "hm":
            counted = pair(who, metric)
            return None if counted is None else (counted.mcnemar(), counted.pictures)
        base, novel = pair(who, "base"), pair(who, "novel")
        if base is None or novel is None or not base.pictures or not novel.pictures:
            return None
        return harmonic_mean_test(base, novel), base.pictures + novel.pictures

    return test


def _predictions(place: str, side: Measured) -> Predictions:
    try:
        if side.predictions is None:
            raise BadArtifact("no predictions are kept")
        found = side.predictions()
        if not all(found.give(who, scores) for who, scores in side.scores.items()):
            raise BadArtifact("the predictions are not those that the metrics were counted of")
    except PdError as error:
        raise BadArtifact(f"on the {place} side {error}") from None
    return found


def _averages(known: Pairs) -> Iterator[MetricDifference]:
    """Average as every table does; test over the data sets."""
    everybody = dict.fromkeys(who for pair in known.values() for who in pair[0].scores)
    for who in everybody:
        rows = [pair for pair in known.values() if _has_halves(who, pair)]
        if len(rows) < 2:
            continue
        sides = [_average(who, (pair[place] for pair in rows)) for place in (0, 1)]
        for one in _differing(None, {who: sides[0]}, {who: sides[1]}):
            values = [
                _by_dataset(who, one.metric, (pair[place] for pair in rows)) for place in (0, 1)
            ]
            found = over_datasets(values[0], values[1])
            yield MetricDifference(
                None, who, one.metric, one.first, one.second, found.p, found.datasets
            )


def _has_halves(who: str, pair: Iterable[Measured]) -> bool:
    return all(set(KEYS) <= set(side.scores.get(who, {})) for side in pair)


def _average(who: str, rows: Iterable[Measured]) -> Mapping[str, float]:
    evaluations = {
        str(place): {who: {key: row.scores[who][key] for key in KEYS}}
        for place, row in enumerate(rows)
    }
    average: Mapping[str, float] = summarise("", evaluations)["average"][who]
    return average


def _by_dataset(who: str, metric: str, rows: Iterable[Measured]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row.scores[who][metric])
    return found
