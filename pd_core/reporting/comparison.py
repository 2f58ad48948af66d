"""Comparison of two states of the project: parameters, metrics and their significance.

Nothing is computed anew: compared are the outputs of stages and the records of runs, of git
revisions, MLflow runs or model versions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pd_core.core.artifacts import read_json
from pd_core.core.errors import (
    BadArtifact,
    BadData,
    BadParams,
    MissingFile,
    PdError,
    UnknownName,
)
from pd_core.core.options import BASELINE, TITLES
from pd_core.data.loading.splits import base_count
from pd_core.evaluation.significance import Paired, harmonic_mean_test, over_datasets, paired
from pd_core.mlops import registry, tracking
from pd_core.mlops.registry import Version, refusals
from pd_core.mlops.tracking.recorder import flat
from pd_core.pipeline import dvc
from pd_core.pipeline.provenance import commit_of, content_hash, contents, read_lock, read_yaml
from pd_core.reporting.results import ESTIMATES, KEYS, average, rounded
from pd_core.reporting.tables import NONE, Column, Table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARAMS, LOCK, PREDICTIONS = "params.yaml", "dvc.lock", "predictions.json"

Params = Mapping[str, Any]  # dotted name -> value
Scores = Mapping[str, Mapping[str, float]]  # model -> metric -> percent

_ROUNDING = 0.006  # percent; metrics are kept with two decimals at least
_SIDES = ("first", "second")
_TESTS = """\
p       of a data set: McNemar's test on its test images, for hm a permutation test;
        of the average: Wilcoxon's test over three data sets or more;
        not corrected for the many rows"""

_RUN, _MODEL = "runs:/", "models:/"
_PARAMETERS = {
    "seed": "run.seed",
    "protocol": "prepare.protocol",
    "selection": "student.selection",
}
"""Tags of a version that are parameters."""

_METRICS = re.compile(r"data/evaluate/(?P<name>[^/]+)/metrics\.json")
_ESTIMATES = re.compile(r"data/evaluate/cross_validate/(?P<name>[^/]+)\.json")
_BASELINES = re.compile(rf"data/evaluate/{BASELINE}/(?P<name>[^/]+)\.json")
_LACKING = (
    "the file is not in DVC's cache; get it with `dvc pull`, of an earlier revision with "
    "`dvc fetch --all-commits`"
)

Find = Callable[[str, str], Path]  # a file by its path and hash


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of the test images of a data set."""

    paths: tuple[str, ...]  # of the N images, sorted
    labels: NDArray[np.int64]  # (N,)
    chosen: Mapping[str, NDArray[np.int64]]  # model -> (N, 2): best of the image's half, and of all

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read the output of the stage `evaluate`.

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
            raise BadArtifact("they are no predictions of labelled images") from None
        return cls(paths, labels, chosen)

    def right(self, model: str, metric: str) -> NDArray[np.bool_] | None:
        """Return which of the images that a metric counts are classified correctly, by path.

        None if the metric is no share of images, or the model has no predictions.
        """
        if model not in self.chosen:
            return None
        hits: NDArray[np.bool_] = self.chosen[model] == self.labels[:, None]
        classes = max(int(part.max()) for part in (self.labels, *self.chosen.values())) + 1
        base = self.labels < base_count(classes)
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

    def fit(self, model: str, scores: Mapping[str, float]) -> bool:
        """Return True if a model's scores, in percent, were counted of these predictions."""
        return all(
            abs(100 * right.mean() - value) < _ROUNDING
            for metric, value in scores.items()
            if (right := self.right(model, metric)) is not None and len(right)
        )


@dataclass(frozen=True)
class Measured:
    """Parameters and results of one data set, for one seed."""

    dataset: str  # without the seed
    params: Params  # in force for it, overrides included
    scores: Scores = field(default_factory=dict)  # empty if nothing was measured
    predictions: Callable[[], Predictions] | None = None  # reads them; raises `PdError`
    absent: str = ""  # why there are no scores
    pictures: str | None = None  # fingerprint of its images, if there is one


@dataclass(frozen=True)
class Side:
    """A git revision, an MLflow run or a model version."""

    given: str  # by the user
    kind: str  # `revision`, `run` or `version`
    name: str  # the full one: the commit, the run's id, or `promptkd-<data set>/<number>`
    measured: Mapping[str, Measured]  # by data set, or `<data set>-<seed>`

    @property
    def title(self) -> str:
        """Its readable name."""
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
                row.dataset or "average", row.who, row.metric, f"{row.first:.2f}",
                f"{row.second:.2f}", f"{row.difference:+.2f}", _p(row.p), _text(row.pairs),
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
        return [
            *([] if self.params else ["no parameter that both know differs"]),
            *([_TESTS] if self.metrics or self.averages else []),
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
    return {name: pair for name, pair in pairs.items() if all(part.scores for part in pair)}


def _metrics(
    dataset: str, first: Measured, second: Measured, notes: _Notes
) -> Iterator[MetricDifference]:
    differences = list(_differing(dataset, first.scores, second.scores))
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


def _differing(dataset: str | None, first: Scores, second: Scores) -> Iterator[MetricDifference]:
    """Find the metrics that differ in the two decimals that everything that records them keeps."""
    for model, scores in first.items():
        others = second.get(model, {})
        shared = set(scores) & set(others)
        for metric in (*(key for key in KEYS if key in shared), *sorted(shared - set(KEYS))):
            if f"{scores[metric]:.2f}" != f"{others[metric]:.2f}":
                yield MetricDifference(dataset, model, metric, scores[metric], others[metric])


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
            pair
            for pair in measured.values()
            if all(set(KEYS) <= set(side.scores.get(model, {})) for side in pair)
        ]
        if len(halves) < 2:
            continue
        sides = list(zip(*halves, strict=True))
        means = [{model: rounded(average([row.scores[model] for row in rows]))} for rows in sides]
        for row in _differing(None, *means):
            overall = over_datasets(*(_by_dataset(model, row.metric, rows) for rows in sides))
            yield replace(row, p=overall.p, pairs=overall.datasets)


def _by_dataset(model: str, metric: str, rows: Sequence[Measured]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.dataset, []).append(row.scores[model][metric])
    return scores


def find_side(given: str, project: Path, open_store: Callable[[], str]) -> Side:
    """Read the side of a name; git revisions come first.

    Args:
        given: a git revision; the id of an MLflow run, with `runs:/` in front or not; a model
            version such as `greek/3` or `greek@champion`, with `models:/` in front or not.
        project: folder of the pipeline.
        open_store: opens MLflow's store, which git revisions need not have.

    Raises:
        UnknownName: it is none of them.
        PdError: it cannot be read.
    """
    if not given.startswith((_RUN, _MODEL)) and (commit := commit_of(project, given)):
        return _read_revision(given, commit, project)
    store = open_store()
    run_id = given.removeprefix(_RUN)
    if not given.startswith(_MODEL) and (run := _find_run(store, run_id)):
        return _read_run(given, store, run, project)
    try:
        version = registry.find(store, given)
    except (BadParams, UnknownName) as error:
        raise UnknownName(
            f"'{given}' is no git revision, no MLflow run and no model version ({error})"
        ) from None
    return _read_version(given, store, version, project)


def _read_revision(given: str, commit: str, project: Path) -> Side:
    """Read a revision; its files are in the project or in DVC's cache."""
    files = dict(contents(project, commit, [PARAMS, LOCK]))
    for name in (PARAMS, LOCK):
        if name not in files:
            raise MissingFile(
                f"revision '{given}' has no {name} in this folder; give one that has, or go to "
                f"the folder of the pipeline"
            )
    place = f"{commit[:7]}:"
    params = _params_by_dataset(read_yaml(files[PARAMS], place + PARAMS), place + PARAMS)
    hashes = _hashes(files[LOCK], place + LOCK)
    find = _finder(project)
    evaluated = {
        name: _measured(name, paths, params, hashes, find)
        for name, paths in _metrics_files(hashes).items()
    }
    if evaluated and not any(part.scores for part in evaluated.values()):
        reason = next(iter(evaluated.values())).absent
        raise MissingFile(f"no metrics of revision '{given}' can be read: {reason}")
    others = {name: Measured(name, own, absent="not evaluated") for name, own in params.items()}
    return Side(given, "revision", commit, others | evaluated)


def _params_by_dataset(content: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return for each data set the parameters in force, overrides included, by dotted name."""
    datasets = content.get("datasets") if isinstance(content, Mapping) else None
    if not isinstance(datasets, Mapping):
        raise BadData(f"{name} has no `datasets:`; restore it from git")
    common = {block: value for block, value in content.items() if block != "datasets"}
    return {str(key): flat(_overridden(common, row), ".") for key, row in datasets.items()}


def _overridden(common: Mapping[str, Any], row: Any) -> dict[str, Any]:
    own = row if isinstance(row, Mapping) else {}
    changed = {
        block: {**(common.get(block) or {}), **values}
        for block, values in own.items()
        if isinstance(values, Mapping) and isinstance(common.get(block) or {}, Mapping)
    }
    return {**common, **changed}


def _dataset_of(name: str, datasets: Iterable[str]) -> str:
    """Return the data set of a folder of results: `greek` for `greek-2`, its second seed."""
    fitting = (dataset for dataset in datasets if name == dataset or name.startswith(f"{dataset}-"))
    return max(fitting, key=len, default=name)


def _hashes(lock: bytes, name: str) -> dict[str, str]:
    """Return the hashes of all files and folders that stages read or wrote, by path."""
    try:
        return {
            entry["path"]: str(entry["md5"])
            for stage in read_lock(lock, name).values()
            for entry in (*stage.get("deps", []), *stage.get("outs", []))
            if "md5" in entry
        }
    except (AttributeError, KeyError, TypeError):
        raise BadData(f"{name} is no lock file of DVC; restore it from git") from None


def _metrics_files(hashes: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the paths of each data set's metrics, the baseline's last."""
    files: dict[str, list[str]] = {}
    for pattern in (_METRICS, _ESTIMATES, _BASELINES):
        for path in hashes:
            if match := pattern.fullmatch(path):
                files.setdefault(match["name"], []).append(path)
    return files


def _finder(project: Path) -> Find:
    """Return a function from path and hash to a file of the project or of DVC's cache."""
    from dvc.repo import Repo

    with Repo(str(dvc.root(project))) as repo:
        cache = repo.cache.local

    def find(path: str, digest: str) -> Path:
        for place in (project / path, Path(cache.oid_to_path(digest))):
            if place.is_file() and content_hash(place) == digest:
                return place
        raise MissingFile(_LACKING)

    return find


def _measured(
    name: str,
    paths: Iterable[str],
    params: Mapping[str, Mapping[str, Any]],
    hashes: Mapping[str, str],
    find: Find,
) -> Measured:
    dataset = _dataset_of(name, params)
    own = params.get(dataset, {})
    fingerprint = re.compile(rf"(?:.*/)?fingerprints/{re.escape(dataset)}\.json")
    pictures = next((hashes[path] for path in hashes if fingerprint.fullmatch(path)), None)
    file = f"data/evaluate/{name}/{PREDICTIONS}"

    def predictions() -> Predictions:
        if file not in hashes:
            raise MissingFile(f"{LOCK} has no predictions")
        return Predictions.read(find(file, hashes[file]))

    scores: dict[str, Any] = {}
    try:
        for path in paths:
            scores |= scores_of(read_json(find(path, hashes[path]), what="metrics"))
    except (MissingFile, BadArtifact) as error:
        return Measured(dataset, own, absent=str(error))
    return Measured(dataset, own, scores, predictions, pictures=pictures)


def _find_run(store: str, run_id: str) -> Run | None:
    with refusals(f"look for run '{run_id}'", store):
        return tracking.find(tracking.client(store), run_id)


def _read_run(given: str, store: str, run: Run, project: Path) -> Side:
    """Read the run of a stage, a data set or a benchmark; the project may hold its predictions."""
    mlflow = tracking.client(store)
    with refusals(f"read run '{run.info.run_id}'", store):
        stages = [run] if "stage" in run.data.tags else tracking.below(mlflow, run)
        by_dataset: dict[str, list[Run]] = {}
        for stage in stages:
            if dataset := stage.data.tags.get("dataset"):
                by_dataset.setdefault(dataset, []).append(stage)
        measured = {
            dataset: _measured_by(mlflow, store, runs, project)
            for dataset, runs in by_dataset.items()
        }
    return Side(given, "run", run.info.run_id, measured)


def _read_version(given: str, store: str, version: Version, project: Path) -> Side:
    """Read a model version: its run, and its tags."""
    name = f"{version.name}/{version.number}"
    run = _find_run(store, version.run_id) if version.run_id else None
    logged = Measured(version.dataset, {})
    if run is not None and run.data.tags.get("dataset") == version.dataset:
        logged = _read_run(given, store, run, project).measured[version.dataset]
    tagged = {key: value for key, value in version.tags.items() if key in _PARAMETERS}
    params = {**logged.params, **{_PARAMETERS[key]: _value(tagged[key]) for key in tagged}}
    numbers = {key: _value(text) for key, text in version.tags.items()}
    measured = Measured(
        version.dataset.removesuffix(f"-{version.tags.get('seed')}"),
        params,
        logged.scores or scores_of(_nested(numbers)),
        logged.predictions,
        absent="nothing was measured of it",
    )
    return Side(given, "version", name, {version.dataset: measured})


def _measured_by(mlflow: MlflowClient, store: str, runs: list[Run], project: Path) -> Measured:
    """Merge the records of a data set's stages, the latest run last."""
    params: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for run in runs:
        for maker in (*tracking.makers(mlflow, run), run):
            params |= {key: _value(text) for key, text in maker.data.params.items()}
        scores |= scores_of(_nested(run.data.metrics))
    evaluation = next((run for run in runs if run.data.tags["stage"] == "evaluate"), None)

    def predictions() -> Predictions:
        if evaluation is None:
            raise MissingFile("no run of the stage `evaluate`")
        return _run_predictions(mlflow, store, evaluation, project)

    tags = runs[-1].data.tags
    dataset = tags["dataset"].removesuffix(f"-{tags.get('seed')}")
    return Measured(dataset, params, scores, predictions, absent="nothing was measured in it")


def _run_predictions(mlflow: MlflowClient, store: str, run: Run, project: Path) -> Predictions:
    """Read a run's predictions: its artifact, or the project's file, if it is the same."""
    run_id = run.info.run_id
    with refusals(f"read the files of run '{run_id}'", store), TemporaryDirectory() as folder:
        if any(file.path == PREDICTIONS for file in mlflow.list_artifacts(run_id)):
            return Predictions.read(Path(mlflow.download_artifacts(run_id, PREDICTIONS, folder)))
    place = f"data/evaluate/{run.data.tags['dataset']}"
    if tracking.lineage_of(mlflow, run).outs.get(place) != content_hash(project / place):
        raise MissingFile(f"run {run_id} keeps no predictions, and those in '{place}' are others")
    return Predictions.read(project / place / PREDICTIONS)


def _value(text: str) -> Any:
    """Return the value of a parameter that MLflow made a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def scores_of(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the accuracies by model and metric of a metrics file or a run's metrics.

    Args:
        content: model -> metric -> percent among others; and estimates, metric -> model.
    """
    rows = [
        (model, metric, value)
        for model, row in content.items()
        if model in TITLES and isinstance(row, Mapping)
        for metric, value in row.items()
    ]
    for metric in ESTIMATES:
        if isinstance(row := content.get(metric), Mapping):
            rows += [(model, metric, value) for model, value in row.items()]
    scores: dict[str, dict[str, float]] = {}
    for model, metric, value in rows:
        if isinstance(value, Real) and not isinstance(value, bool):
            scores.setdefault(model, {})[metric] = float(value)
    return scores


def _nested(metrics: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return metrics such as `student/hm` or `student.hm` as `student` -> `hm`, without others."""
    nested: dict[str, dict[str, object]] = {}
    for name, value in metrics.items():
        model, *metric = re.split("[/.]", name, maxsplit=1)
        if metric:
            nested.setdefault(model, {})[metric[0]] = value
    return nested
