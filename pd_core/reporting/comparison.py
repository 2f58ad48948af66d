"""Two states of the project beside each other, and whether they differ by more than chance.

Nothing is computed anew: what is compared is what stages wrote and what runs recorded, of git
revisions, MLflow runs or model versions (`comparison_sources` reads them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadArtifact, BadParams, PdError
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import base_count
from pd_core.evaluation.significance import Paired, harmonic_mean_test, over_datasets, paired
from pd_core.reporting.results import KEYS, average, rounded

Params = Mapping[str, Any]  # dotted name -> value
Scores = Mapping[str, Mapping[str, float]]  # who -> metric -> percent

_ROUNDING = 0.006  # percent; metrics are kept with two decimals at least
_PLACES = ("first", "second")


@dataclass(frozen=True)
class Predictions:
    """What everybody said about the test pictures of a data set.

    Attributes:
        paths: of the N pictures, sorted.
        labels: (N,).
        chosen: who -> (N, 2): the best class of the picture's half, and of all.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    chosen: Mapping[str, NDArray[np.int64]]

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read what the stage `evaluate` wrote.

        Raises:
            BadArtifact: the file is not of its form.
        """
        content = read_json(path)
        try:
            rows = sorted(content, key=lambda row: row["path"])
            paths = tuple(str(row["path"]) for row in rows)
            labels = np.array([row["label"] for row in rows], dtype=np.int64)
            chosen = {
                name: np.array([row[name] for row in rows], dtype=np.int64).reshape(len(rows), 2)
                for name in rows[0]
                if name in TITLES
            }
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise BadArtifact("they are no predictions of labelled pictures") from None
        return cls(paths, labels, chosen)

    def right(self, who: str, metric: str) -> NDArray[np.bool_] | None:
        """Say which of the pictures that a metric counts are named right, in the order of paths.

        Returns:
            None if the metric is no share of pictures, or nobody of that name was asked.
        """
        if who not in self.chosen:
            return None
        hits: NDArray[np.bool_] = self.chosen[who] == self.labels[:, None]
        known = (self.labels, *self.chosen.values())
        base = self.labels < base_count(max(int(part.max()) for part in known) + 1)
        match metric:
            case "base":
                hits = hits[base, 0]
            case "novel":
                hits = hits[~base, 0]
            case "all" | "accuracy":
                hits = hits[:, 1]
            case _:
                return None
        return hits

    def give(self, who: str, scores: Mapping[str, float]) -> bool:
        """Whether these are the predictions that somebody's scores, in percent, were counted of."""
        return all(
            abs(100 * right.mean() - value) < _ROUNDING
            for metric, value in scores.items()
            if (right := self.right(who, metric)) is not None and len(right)
        )


@dataclass(frozen=True)
class Measured:
    """What is known of one data set, for one seed.

    Attributes:
        dataset: its name, without the seed.
        params: as they were in force for it, overrides included.
        scores: who reached what; empty if nothing is known.
        predictions: reads them; raises `PdError`, which says why, if they are not at hand.
        absent: why there are no scores.
        pictures: fingerprint of its pictures; None if it is not known.
    """

    dataset: str
    params: Params
    scores: Scores = field(default_factory=dict)
    predictions: Callable[[], Predictions] | None = None
    absent: str = ""
    pictures: str | None = None


@dataclass(frozen=True)
class Side:
    """A git revision, an MLflow run or a model version.

    Attributes:
        given: the name that the user gave.
        kind: `revision`, `run` or `version`.
        name: the full one: the commit, the run's id, or `promptkd-<data set>/<number>`.
        measured: by data set; one with a seed of its own is `<data set>-<seed>`.
    """

    given: str
    kind: str
    name: str
    measured: Mapping[str, Measured]

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{self.kind} {self.name}" + ("" if self.given in self.name else f" ({self.given})")


Pairs = Mapping[str, tuple[Measured, Measured]]  # by data set


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


class _Notes(dict[str, list[str]]):
    """Reasons, each with the data sets that it is given for."""

    def add(self, reason: str, dataset: str) -> None:
        self.setdefault(reason, []).append(dataset)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{reason}: {', '.join(dict.fromkeys(of))}" for reason, of in self.items())


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
    """Find the parameters that differ, and note which are known of one side only.

    If `complete`, one that a side lacks is not set there, rather than not known.
    """
    found: dict[str, tuple[str, Any, Any, list[str]]] = {}
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
                entry = found.setdefault(repr((name, values)), (name, *values, []))
                entry[-1].append(dataset)
    return [ParamDifference(*entry[:-1], tuple(entry[-1])) for entry in found.values()]


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
        yield one if found is None else replace(one, p=found[0], pairs=found[1])


def _differing(dataset: str | None, first: Scores, second: Scores) -> Iterator[MetricDifference]:
    """Find the metrics that differ in the two decimals that everything that records them keeps."""
    for who, scores in first.items():
        shared = set(scores) & set(second.get(who, {}))
        for metric in (*(key for key in KEYS if key in shared), *sorted(shared - set(KEYS))):
            one, other = scores[metric], second[who][metric]
            if f"{one:.2f}" != f"{other:.2f}":
                yield MetricDifference(dataset, who, metric, one, other)


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
    for who in dict.fromkeys(who for pair in known.values() for who in pair[0].scores):
        halves = [
            pair
            for pair in known.values()
            if all(set(KEYS) <= set(side.scores.get(who, {})) for side in pair)
        ]
        if len(halves) < 2:
            continue
        first, second = zip(*halves, strict=True)
        means = [
            {who: rounded(average([row.scores[who] for row in rows]))} for rows in (first, second)
        ]
        for one in _differing(None, *means):
            found = over_datasets(*(_by_dataset(who, one.metric, rows) for rows in (first, second)))
            yield replace(one, p=found.p, pairs=found.datasets)


def _by_dataset(who: str, metric: str, rows: Sequence[Measured]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row.scores[who][metric])
    return found
