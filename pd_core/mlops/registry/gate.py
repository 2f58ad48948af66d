"""The gate: checks that a version has to pass before it may become the champion.

No logged value is trusted: the version's files are hashed, it is loaded and run in a fresh process,
and its predictions for the test images are compared with those of the champion, run the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pd_core.core.artifacts import SUMS, file_hash, read_json
from pd_core.core.errors import PdError
from pd_core.core.options import Metric
from pd_core.data.loading.prepared import Prepared, read_prepared, read_unlabelled
from pd_core.evaluation.class_metrics import METRICS
from pd_core.evaluation.paired_metrics import PairedMetric
from pd_core.mlops import registry
from pd_core.mlops.registry import BUNDLE, FILES, KIND, PARENT, QUANTIZED, Version, origin, trial
from pd_core.mlops.registry.trial import Comparison, Predictions, Trial, compare
from pd_core.pipeline import provenance
from pd_core.pipeline.stages.params import PromotionParams

UNLABELLED = 100
"""Images in a trial where no test image has a label."""

_BATCH = 64
_SUM_ERROR = 1e-3  # of probabilities that were rounded to fp32, many of them

OnNote = Callable[[str], None]


class Exam(PromotionParams):
    """Data and limits for the checks of a version.

    Attributes:
        project: folder of `dvc.lock` and `params.yaml`.
        profile: that these describe, `quickstart` or `paper`.
        prepared: folder of the data set that the stage `prepare` wrote.
        data_root: folder that holds the photo data sets.
        model: the student's CLIP, which a first champion has to beat as it is.
        weights: its weights, as in the parameters.
        accept_unknown: let a version pass whose accuracy cannot be measured.
    """

    project: Path
    profile: str
    prepared: Path
    data_root: Path
    model: str
    weights: str | None
    accept_unknown: bool = False


@dataclass(frozen=True)
class Measure:
    """A measured value, its limit, their required relation in words, and the unit of both."""

    value: float
    limit: float
    wanted: str
    unit: str


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: its subject, in one word.
        passed: True if the version passes it.
        finding: the result with numbers, in one line.
        measure: the number that decided, if one did.
    """

    name: str
    passed: bool
    finding: str
    measure: Measure | None = None


def examine(
    store: str,
    version: Version,
    champion: Version | None,
    exam: Exam,
    *,
    on_note: OnNote = lambda _: None,
) -> list[Check]:
    """Make all checks of a version, which would replace the champion, if there is one.

    `on_note` is called with a line before each step that takes a while.

    Raises:
        MissingFile: the data set is not prepared, or its images are not there.
        BadArtifact: the prepared data set is not what was written.
    """
    prepared = read_prepared(exam.prepared, data_root=exam.data_root)
    with TemporaryDirectory(prefix="promptkd-gate-") as folder:
        on_note(f"fetching version {version.number}")
        model = registry.fetch(store, version, Path(folder) / "candidate")
        intact, size = _intact(model, version), _size(model, exam)
        result = Trial(problem="not tried: its files are not those that were registered")
        if intact.passed:
            on_note(f"trying version {version.number} in a fresh process")
            result = trial.run(model, _task(prepared, exam), Path(folder) / "candidate-trial")
        accuracy = _Accuracy(store, exam, prepared, Path(folder), on_note)
        checks = [
            intact,
            size,
            _lineage(store, version, exam),
            _loads(result),
            _predictions(result, model),
            _latency(result, exam),
            accuracy.check(result, champion),
        ]
        if version.tags.get(KIND) == QUANTIZED:
            checks.append(accuracy.check_precision(result, version))
        return checks


def check_files(store: str, version: Version) -> Check:
    """Check that a version's files are there, and those that were registered."""
    with TemporaryDirectory(prefix="promptkd-gate-") as folder:
        return _intact(registry.fetch(store, version, Path(folder)), version)


def _failed(name: str, finding: str) -> Check:
    return Check(name, passed=False, finding=finding)


def _at_most(name: str, finding: str, value: float, limit: float, unit: str) -> Check:
    return Check(name, value <= limit, finding, Measure(value, limit, "at most", unit))


def _intact(model: Path, version: Version) -> Check:
    digest, registered = provenance.content_hash(model), version.tags.get(FILES)
    if digest != registered:
        finding = f"its files hash to {digest}, {registered} was registered; register it again"
        return _failed("intact", finding)
    bundle = model / BUNDLE
    lines = (bundle / SUMS).read_text().splitlines() if (bundle / SUMS).is_file() else []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {
        path.relative_to(bundle).as_posix(): path
        for path in bundle.rglob("*")
        if path.is_file() and path.name != SUMS and "__pycache__" not in path.parts
    }
    wrong = [name for name in sums if name not in files or file_hash(files[name]) != sums[name]]
    wrong += sorted(files.keys() - sums.keys())
    if wrong:
        return _failed("intact", f"{SUMS} in it does not fit {wrong[0]}")
    return Check("intact", True, f"{len(files)} files are those registered, {digest}")


def _size(model: Path, exam: Exam) -> Check:
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    finding = f"{size:.2f} MB, at most {exam.megabytes:g} MB"
    return _at_most("size", finding, size, exam.megabytes, "MB")


def _lineage(store: str, version: Version, exam: Exam) -> Check:
    faults = origin.faults(store, version, project=exam.project, profile=exam.profile)
    if faults:
        return _failed("lineage", "; ".join(faults))
    commit = registry.lineage(store, version).git_commit[:12]
    return Check("lineage", True, f"{origin.LOCK} and commit {commit} agree with it")


def _loads(result: Trial) -> Check:
    finding = f"in {result.load_seconds:.1f} s, in a fresh process"
    return Check("loads", result.loaded, finding if result.loaded else result.problem)


def _predictions(result: Trial, model: Path) -> Check:
    if result.predictions is None:
        return _failed("answers", result.problem)
    scores = result.predictions.scores[list(result.predicted)]
    names = read_json(model / BUNDLE / "model.json").get("names", [])
    if strange := sorted(set(result.names) ^ set(names)):
        return _failed("answers", f"its names are not those of its model.json, as '{strange[0]}'")
    if not np.isfinite(scores).all() or scores.min() < 0:
        return _failed("answers", "some probabilities are negative or not finite")
    error = float(np.abs(scores.sum(axis=1) - 1).max())
    finding = f"{len(scores)} images, {len(names)} names, sums within {error:.1e} of 1"
    return _at_most("answers", finding, error, _SUM_ERROR, "")


def _latency(result: Trial, exam: Exam) -> Check:
    if result.predictions is None:
        return _failed("latency", "not measured: there are no predictions")
    finding = (
        f"median {result.median_ms:.1f} ms, p95 {result.p95_ms:.1f} ms for one image, "
        f"{exam.timed} times; p95 at most {exam.latency_ms:g} ms"
    )
    return _at_most("latency", finding, result.p95_ms, exam.latency_ms, "ms")


def _task(prepared: Prepared, exam: Exam) -> trial.Task:
    paths = [path for path, _ in prepared.test] or read_unlabelled(exam.prepared)[:UNLABELLED]
    return trial.Task(
        images=str(prepared.images.resolve()),
        paths=tuple(paths),
        batch_size=_BATCH,
        warm_ups=exam.warm_ups,
        timed=exam.timed,
        seconds=exam.seconds,
    )


class _Unknown(Exception):
    """The accuracy cannot be measured; the text is the reason."""


@dataclass(frozen=True)
class _Accuracy:
    """The checks of a candidate's predictions for the test images, against those of others."""

    store: str
    exam: Exam
    prepared: Prepared
    folder: Path
    on_note: OnNote
    tried: dict[int, Predictions] = field(default_factory=dict)
    """Predictions of other versions, by number."""

    def check(self, result: Trial, champion: Version | None) -> Check:
        """Compare a candidate with the champion, or a first one with the zero-shot student."""
        margin = self.exam.margin
        return self._known(
            "accuracy",
            result,
            lambda predictions: (
                self._against_zero_shot(predictions)
                if champion is None
                else self._against(champion, "the champion", "accuracy", predictions, margin)
            ),
        )

    def check_precision(self, result: Trial, version: Version) -> Check:
        """Compare a quantized candidate with the version that it was made from."""
        reference = f"{version.name}/{version.tags.get(PARENT)}"
        margin = self.exam.quantized_margin
        return self._known(
            "precision",
            result,
            lambda predictions: self._against(
                self._found(reference), "its original", "precision", predictions, margin
            ),
        )

    def _known(self, name: str, result: Trial, compare: Callable[[Predictions], Check]) -> Check:
        """Return the check that `compare` makes, if the test images have labels."""
        if result.predictions is None:
            return _failed(name, "not measured: there are no predictions")
        try:
            if not self.prepared.test:
                raise _Unknown("there are no labelled test images")
            return compare(result.predictions)
        except _Unknown as reason:
            if self.exam.accept_unknown:
                return Check(name, True, f"unknown, and accepted: {reason}")
            return _failed(name, f"unknown: {reason}; --accept-unknown promotes it all the same")

    def _against(
        self, other: Version, role: str, name: str, predictions: Predictions, margin: float
    ) -> Check:
        """Check that a candidate is not worse than another version by more than a margin."""
        title = f"{role}, version {other.number},"
        held = self._predictions_of(other, title)
        result = self._compare(predictions, held, f"no class that it shares with {title}")
        exam = self.exam
        measured = result.by(exam.metric, exam.confidence)
        test = "McNemar" if exam.metric is Metric.ACCURACY else "permutation test,"
        finding = (
            f"{self._shares(result, measured, title)}; difference at least "
            f"{100 * measured.bound:+.2f} points with {100 * exam.confidence:g}% confidence, "
            f"{-100 * margin:+.2f} allowed ({test} p = {measured.p:.2g})"
        )
        measure = Measure(100 * measured.bound, -100 * margin, "at least", "points")
        return Check(name, measured.bound >= -margin, finding, measure)

    def _found(self, reference: str) -> Version:
        try:
            return registry.find(self.store, reference)
        except PdError as error:
            raise _Unknown(f"its original is not in the registry ({error})") from None

    def _predictions_of(self, other: Version, title: str) -> Predictions:
        """Try another version, each once."""
        if other.number not in self.tried:
            self.on_note(f"trying {title} in a fresh process")
            self.tried[other.number] = self._try(other, title)
        return self.tried[other.number]

    def _try(self, other: Version, title: str) -> Predictions:
        folder = self.folder / f"version-{other.number}"
        try:
            model = registry.fetch(self.store, other, folder)
        except PdError as error:
            raise _Unknown(f"{title} cannot be fetched ({error})") from None
        if not _intact(model, other).passed:
            raise _Unknown(f"the files of {title} are not those that were registered")
        result = trial.run(model, _task(self.prepared, self.exam), folder / "trial")
        if result.predictions is None:
            raise _Unknown(f"{title} gives no predictions ({result.problem})")
        return result.predictions

    def _against_zero_shot(self, predictions: Predictions) -> Check:
        self.on_note("measuring the zero-shot student")
        plain = zero_shot(self.prepared, self.exam.model, self.exam.weights)
        result = self._compare(predictions, plain, "none of its classes")
        measured = result.by(self.exam.metric, self.exam.confidence)
        shares = self._shares(result, measured, "the zero-shot student")
        finding = f"first champion; {shares}; it must be better"
        measure = Measure(100 * measured.first, 100 * measured.second, "above", "%")
        return Check("accuracy", measured.first > measured.second, finding, measure)

    def _shares(self, result: Comparison, measured: PairedMetric, other: str) -> str:
        """Describe both classifiers by the metric, and the images."""
        first, second = f"{100 * measured.first:.2f}%", f"{100 * measured.second:.2f}%"
        by_accuracy = self.exam.metric is Metric.ACCURACY
        values = f"{first} right" if by_accuracy else f"{METRICS[self.exam.metric]} {first}"
        return (
            f"{values}, {other} {second}, on {result.pictures} test images of {result.classes} "
            f"shared classes ({result.gained} gained, {result.lost} lost)"
        )

    def _compare(self, first: Predictions, second: Predictions, no_class: str) -> Comparison:
        labels = [self.prepared.classes[label] for _, label in self.prepared.test]
        result = compare(first, second, labels)
        if result is None:
            raise _Unknown(f"{no_class} has test images")
        return result


def zero_shot(prepared: Prepared, model: str, weights: str | None) -> Predictions:
    """Classify the test images with an untuned CLIP; `weights` None for the package's own.

    Raises:
        MissingFile: the weights, or images, are not there.
    """
    from pd_core.core.options import OnCorrupt, Precision
    from pd_core.data.loading.decode import ImageStore
    from pd_core.data.loading.images import ImageBatches, eval_transform
    from pd_core.models.class_vectors import logits_of, zero_shot
    from pd_core.models.clip import load_clip

    towers = load_clip(model, weights)
    paths = [path for path, _ in prepared.test]
    batches = ImageBatches(
        ImageStore(prepared.images),
        paths,
        eval_transform(towers.preprocess),
        batch_size=_BATCH,
        on_corrupt=OnCorrupt.SKIP,
    )
    classifiers = {"zero_shot": zero_shot(towers, prepared.classes)}
    logits = logits_of(classifiers, batches, towers.device, Precision.FP32)["zero_shot"]
    scores = np.full((len(paths), logits.shape[1]), np.nan, np.float32)
    scores[batches.intact] = logits
    return Predictions(prepared.classes, scores)
