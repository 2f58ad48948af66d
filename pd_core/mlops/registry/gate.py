"""The gate: checks that a version has to pass before it may become the champion.

Nothing that was logged is trusted: its files are hashed, it is loaded and asked in a fresh process,
and its answers to the test pictures are compared with those of the champion, asked the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pd_core.core.artifacts import SUMS, file_hash, read_json
from pd_core.core.errors import PdError
from pd_core.data.loading.prepared import Prepared, read_prepared, read_unlabelled
from pd_core.mlops import registry
from pd_core.mlops.registry import BUNDLE, FILES, Version, origin, trial
from pd_core.mlops.registry.trial import Answers, Comparison, Trial, compare
from pd_core.pipeline import provenance
from pd_core.pipeline.stages.params import PromotionParams

UNLABELLED = 100
"""Pictures asked about where none has a label to be measured by."""

_BATCH = 64
_AT_MOST, _AT_LEAST, _ABOVE = "at most", "at least", "above"
_SUM_ERROR = 1e-3  # of probabilities that were rounded to fp32, many of them

OnNote = Callable[[str], None]


class Exam(PromotionParams):
    """Data and limits that a version is examined with.

    Attributes:
        project: folder of `dvc.lock` and `params.yaml`.
        profile: what these describe, `quickstart` or `paper`.
        prepared: folder of the data set that the stage `prepare` wrote.
        data_root: folder that holds the photo data sets.
        model: the student's CLIP, which a first champion has to beat as it is.
        weights: of it, as in the parameters.
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
    """A measured value, its limit, how they have to compare (in words), and the unit of both."""

    value: float
    limit: float
    wanted: str
    unit: str


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what it is about, in one word.
        passed: whether the version passes it.
        finding: what was found, with numbers; one line.
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
        MissingFile: the data set is not prepared, or its pictures are not there.
        BadArtifact: it is not what was written.
    """
    prepared = read_prepared(exam.prepared, data_root=exam.data_root)
    with TemporaryDirectory(prefix="promptkd-gate-") as folder:
        on_note(f"fetching version {version.number}")
        model = registry.fetch(store, version, Path(folder) / "candidate")
        intact, size = _intact(model, version), _size(model, exam)
        tried = Trial(problem="not tried: its files are not those that were registered")
        if intact.passed:
            on_note(f"trying version {version.number} in a fresh process")
            tried = trial.run(model, _task(prepared, exam), Path(folder) / "candidate-trial")
        accuracy = _Accuracy(store, exam, prepared, Path(folder), on_note)
        return [
            intact,
            size,
            _lineage(store, version, exam),
            _loads(tried),
            _answers(tried, model),
            _latency(tried, exam),
            accuracy.check(tried, champion),
        ]


def check_files(store: str, version: Version) -> Check:
    """Check that a version's files are there, and those that were registered."""
    with TemporaryDirectory(prefix="promptkd-gate-") as folder:
        return _intact(registry.fetch(store, version, Path(folder)), version)


def _intact(model: Path, version: Version) -> Check:
    found, wanted = provenance.content_hash(model), version.tags.get(FILES)
    if found != wanted:
        finding = f"its files hash to {found}, {wanted} was registered"
        return Check("intact", passed=False, finding=f"{finding}; register it again")
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
        return Check("intact", passed=False, finding=f"{SUMS} in it does not fit {wrong[0]}")
    return Check("intact", passed=True, finding=f"{len(files)} files are those registered, {found}")


def _size(model: Path, exam: Exam) -> Check:
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    finding = f"{size:.2f} MB, at most {exam.megabytes:g} MB"
    measure = Measure(size, exam.megabytes, _AT_MOST, "MB")
    return Check("size", size <= exam.megabytes, finding, measure)


def _lineage(store: str, version: Version, exam: Exam) -> Check:
    faults = origin.faults(store, version, project=exam.project, profile=exam.profile)
    if faults:
        return Check("lineage", passed=False, finding="; ".join(faults))
    commit = version.tags.get("git_commit", "")[:12]
    return Check("lineage", passed=True, finding=f"{origin.LOCK} and commit {commit} agree with it")


def _loads(tried: Trial) -> Check:
    finding = f"in {tried.load_seconds:.1f} s, in a fresh process"
    return Check("loads", tried.loaded, finding if tried.loaded else tried.problem)


def _answers(tried: Trial, model: Path) -> Check:
    if tried.answers is None:
        return Check("answers", passed=False, finding=tried.problem)
    scores = tried.answers.scores[list(tried.answered)]
    known = read_json(model / BUNDLE / "model.json").get("names", [])
    if strange := sorted(set(tried.names) ^ set(known)):
        finding = f"its names are not those of its model.json, as '{strange[0]}'"
        return Check("answers", passed=False, finding=finding)
    if not np.isfinite(scores).all() or scores.min() < 0:
        return Check("answers", passed=False, finding="some probabilities are no probabilities")
    error = float(np.abs(scores.sum(axis=1) - 1).max())
    finding = f"{len(scores)} pictures, {len(known)} names, sums within {error:.1e} of 1"
    measure = Measure(error, _SUM_ERROR, _AT_MOST, "")
    return Check("answers", error <= _SUM_ERROR, finding, measure)


def _latency(tried: Trial, exam: Exam) -> Check:
    if tried.answers is None:
        return Check("latency", passed=False, finding="not measured: it gives no answers")
    finding = (
        f"median {tried.median_ms:.1f} ms, p95 {tried.p95_ms:.1f} ms for one picture, "
        f"{exam.timed} times; p95 at most {exam.latency_ms:g} ms"
    )
    measure = Measure(tried.p95_ms, exam.latency_ms, _AT_MOST, "ms")
    return Check("latency", tried.p95_ms <= exam.latency_ms, finding, measure)


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


@dataclass(frozen=True)
class _Accuracy:
    """The check of a candidate's accuracy, against the champion or the zero-shot student."""

    store: str
    exam: Exam
    prepared: Prepared
    folder: Path
    on_note: OnNote

    def check(self, tried: Trial, champion: Version | None) -> Check:
        if tried.answers is None:
            return Check("accuracy", passed=False, finding="not measured: it gives no answers")
        if not self.prepared.test:
            return self._unknown("there are no labelled test pictures")
        if champion is None:
            return self._against_zero_shot(tried.answers)
        return self._against(champion, tried.answers)

    def _against(self, champion: Version, answers: Answers) -> Check:
        name = f"the champion, version {champion.number},"
        self.on_note(f"trying {name} in a fresh process")
        try:
            model = registry.fetch(self.store, champion, self.folder / "champion")
        except PdError as error:
            return self._unknown(f"{name} cannot be fetched ({error})")
        if not _intact(model, champion).passed:
            return self._unknown(f"the files of {name} are not those that were registered")
        task = _task(self.prepared, self.exam)
        held = trial.run(model, task, self.folder / "champion-trial")
        if held.answers is None:
            return self._unknown(f"{name} gives no answers ({held.problem})")
        found = compare(answers, held.answers, self._labels)
        if found is None:
            return self._unknown(f"no class that it shares with {name} has test pictures")
        bound = found.lower_bound(self.exam.confidence)
        finding = (
            f"{_shares(found, name)}; difference at least {100 * bound:+.2f} points with "
            f"{100 * self.exam.confidence:g}% confidence, {-100 * self.exam.margin:+.2f} allowed "
            f"(McNemar p = {found.mcnemar():.2g})"
        )
        measure = Measure(100 * bound, -100 * self.exam.margin, _AT_LEAST, "points")
        return Check("accuracy", bound >= -self.exam.margin, finding, measure)

    def _against_zero_shot(self, answers: Answers) -> Check:
        self.on_note("measuring the zero-shot student")
        plain = zero_shot(self.prepared, self.exam.model, self.exam.weights)
        found = compare(answers, plain, self._labels)
        if found is None:
            return self._unknown("none of its classes has test pictures")
        finding = f"first champion; {_shares(found, 'the zero-shot student')}; it must be better"
        measure = Measure(100 * found.first, 100 * found.second, _ABOVE, "%")
        return Check("accuracy", found.first > found.second, finding, measure)

    def _unknown(self, reason: str) -> Check:
        if self.exam.accept_unknown:
            return Check("accuracy", passed=True, finding=f"unknown, and accepted: {reason}")
        finding = f"unknown: {reason}; --accept-unknown promotes it all the same"
        return Check("accuracy", passed=False, finding=finding)

    @property
    def _labels(self) -> Sequence[str]:
        return [self.prepared.classes[label] for _, label in self.prepared.test]


def zero_shot(prepared: Prepared, model: str, weights: str | None) -> Answers:
    """Classify the test pictures with a CLIP, untuned; `weights` None for the package's own.

    Raises:
        MissingFile: the weights, or pictures, are not there.
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
        eval_transform(towers.image_size),
        batch_size=_BATCH,
        on_corrupt=OnCorrupt.SKIP,
    )
    judges = {"zero_shot": zero_shot(towers, prepared.classes)}
    logits = logits_of(judges, batches, towers.device, Precision.FP32)["zero_shot"]
    scores = np.full((len(paths), logits.shape[1]), np.nan, np.float32)
    scores[batches.intact] = logits
    return Answers(prepared.classes, scores)


def _shares(found: Comparison, other: str) -> str:
    return (
        f"{100 * found.first:.2f}% right, {other} {100 * found.second:.2f}%, on {found.pictures} "
        f"test pictures of {found.classes} shared classes ({found.gained} gained, {found.lost} "
        f"lost)"
    )
