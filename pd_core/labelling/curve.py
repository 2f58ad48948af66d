"""Accuracy against the number of labels and of unlabelled images: the learning curve of a data set.

Teacher and student are trained again for each point and seed, on a part of the labels or of the
unlabelled images. Parts of a seed are within each other. Finished runs are stored below a key of
everything that determines them, so that none is computed twice.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.errors import BadData
from pd_core.core.hooks import Hooks
from pd_core.core.scores import headline
from pd_core.data.loading.prepared import Labelled, Prepared, read_prepared, read_unlabelled
from pd_core.evaluation.cross_validate import cut
from pd_core.evaluation.evaluate import MODELS, is_measurable
from pd_core.labelling.variants import write_variant
from pd_core.pipeline import code_hash, provenance
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job

PARTS = (8, 4, 2, 1)
"""Parts of the unlabelled images: an eighth to all."""

_STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True, order=True)
class Point:
    """Number of labels and of unlabelled images of a training.

    Attributes:
        shots: labels of each class, if it has so many.
        labels: number of all labels.
        unlabelled: number of unlabelled images.
    """

    shots: int
    labels: int
    unlabelled: int


@dataclass(frozen=True)
class Curve:
    """Measured points of a data set.

    Attributes:
        by_labels: points with all unlabelled images, by their number of labels.
        by_unlabelled: points with all labels, by their number of unlabelled images.
        accuracies: of each point, by model, percent for each seed.
        held_out: accuracies are on labels held out from the training, as no test image has one.
    """

    by_labels: tuple[Point, ...]
    by_unlabelled: tuple[Point, ...]
    accuracies: dict[Point, dict[str, list[float]]]
    held_out: bool


def measure(job: Job, folder: Path, seeds: Sequence[int], hooks: Hooks) -> Curve:
    """Run what is missing of a learning curve.

    Args:
        job: of the data set, whose stage `prepare` has run.
        folder: holds finished runs, and the stages of an unfinished one.
        seeds: of the draws and the trainings.
        hooks: a note announces each run; progress is that of its trainings.

    Returns:
        The points with the accuracies of all seeds.

    Raises:
        MissingFile: the data set is not prepared, or images or weights are missing.
        BadData: no test image has a label, and a class has a single one.
        PdError: as the stages.
    """
    content = read_prepared(job.prepared, data_root=job.data_root)
    held_out = not is_measurable(job.prepared, job.params.evaluate.split)
    few_shot, _ = _lists(job, content, held_out=held_out)
    by_labels, by_unlabelled = points(few_shot, len(read_unlabelled(job.prepared)), job)
    place = folder / _key(job)
    accuracies: dict[Point, dict[str, list[float]]] = {}
    for seed in seeds:
        run = _Seed(job, place, seed, held_out, hooks)
        for point in dict.fromkeys((*by_labels, *by_unlabelled)):
            for model, accuracy in run.measured(point).items():
                accuracies.setdefault(point, {}).setdefault(model, []).append(accuracy)
    shutil.rmtree(place / "stages", ignore_errors=True)
    return Curve(by_labels, by_unlabelled, accuracies, held_out)


def points(
    few_shot: Labelled, unlabelled: int, job: Job
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Return the points of both curves; the last one of both is that of everything.

    Labels of each class are doubled from one on, as far as there are some. Unlabelled images are at
    least a batch.
    """
    counts = Counter(label for _, label in few_shot)
    most = max(counts.values())
    shots = [*_doubled(most), most]
    by_labels = tuple(
        Point(number, sum(min(number, count) for count in counts.values()), unlabelled)
        for number in shots
    )
    parts = (unlabelled // part for part in PARTS)
    by_unlabelled = tuple(
        replace(by_labels[-1], unlabelled=part)
        for part in dict.fromkeys(parts)
        if part >= job.params.student.batch_size or part == unlabelled
    )
    return by_labels, by_unlabelled


def _doubled(most: int) -> Iterable[int]:
    number = 1
    while number < most:
        yield number
        number *= 2


def _lists(job: Job, content: Prepared, *, held_out: bool) -> tuple[Labelled, Labelled | None]:
    """Return the labels to train on and, if some are held out, those to measure on."""
    if not held_out:
        return content.few_shot, None
    folds = cut(content.few_shot, job.params.evaluate.folds, random.Random(job.seed))
    if not folds:
        raise BadData(
            f"data set '{job.params.name}' has no labelled test images, and a class with a single"
            " label, so that none can be held out; add labels"
        )
    test = set(folds[0])
    return tuple(row for row in content.few_shot if row not in test), folds[0]


def _key(job: Job) -> str:
    """Return a hash of everything that determines all runs, but for seed and point."""
    weights = [path for path in jobs.inputs(job, "evaluate") if path.is_file()]
    run, params = job.params.run, job.params
    key = {
        "code": {stage: code_hash.of_stage(stage) for stage in _STAGES},
        "files": [provenance.content_hash(path) for path in weights],
        "images": job.fingerprint and provenance.content_hash(job.fingerprint),
        "params": [
            block.model_dump(mode="json")
            for block in (params.prepare, params.teacher, params.student, params.evaluate)
        ],
        "run": [
            job.device, run.threads, run.processes, run.precision, run.on_corrupt, run.augmentation,
        ],
        "versions": [provenance.version(name) for name in _PACKAGES],
    }  # fmt: skip
    return provenance.params_hash(key)


@dataclass
class _Seed:
    """The runs of one seed."""

    source: Job
    place: Path
    seed: int
    held_out: bool
    hooks: Hooks

    def measured(self, point: Point) -> dict[str, float]:
        """Return the accuracies at a point by model, from a finished run if there is one."""
        name = f"{self.seed}-{point.shots}-{point.unlabelled}"
        file = self.place / "results" / f"{name}.json"
        if not file.is_file():
            self.hooks.on_note(
                f"seed {self.seed}: {point.labels} labels, {point.unlabelled} unlabelled images"
            )
            write_json(file, self._run(point))
        results: dict[str, float] = read_json(file)
        return results

    def _run(self, point: Point) -> dict[str, float]:
        base = self._job("base")
        _once(base.prepared, lambda: jobs.prepare(base))
        job = self._job(f"{point.shots}-{point.unlabelled}")
        # A teacher sees no unlabelled image, so it serves all their numbers.
        tuned = self._job(f"{point.shots}")
        job = replace(job, teacher=tuned.teacher, vectors=tuned.vectors)
        _once(job.prepared, lambda: self._draw(base, job.prepared, point))
        _once(job.teacher, lambda: jobs.teacher(job, self.hooks))
        _once(job.vectors, lambda: jobs.class_vectors(job))
        _once(job.student, lambda: jobs.student(job, self.hooks))
        metrics = jobs.evaluate(job)
        if self.held_out:  # among them are no novel classes
            return {model: metrics[model]["all"] for model in MODELS}
        return {model: headline(metrics[model]) for model in MODELS}

    def _job(self, suffix: str) -> Job:
        source = self.source
        params = source.params
        if self.held_out:
            evaluate = params.evaluate.model_copy(update={"split": "test"})
            params = params.model_copy(update={"evaluate": evaluate})
        return Job.at(
            self.place / "stages", params, seed=self.seed, device=source.device,
            data_root=source.data_root, fingerprint=source.fingerprint,
            checkpoints=self.place / "stages" / "checkpoints", features=source.features,
            suffix=f"-{self.seed}-{suffix}",
        )  # fmt: skip

    def _draw(self, base: Job, out: Path, point: Point) -> None:
        """Write the prepared data set of a point."""
        content = read_prepared(base.prepared, data_root=base.data_root)
        few_shot, test = _lists(base, content, held_out=self.held_out)
        rng = random.Random(self.seed)
        shuffled = sorted(read_unlabelled(base.prepared))
        rng.shuffle(shuffled)
        write_variant(
            base.prepared, out, data_root=base.data_root,
            few_shot=first_shots(few_shot, point.shots, random.Random(self.seed)),
            unlabelled=sorted(shuffled[: point.unlabelled]), test=test,
        )  # fmt: skip


def first_shots(few_shot: Labelled, shots: int, rng: random.Random) -> Labelled:
    """Draw labels of each class; of one seed, fewer are among more."""
    shuffled = list(few_shot)
    rng.shuffle(shuffled)
    seen: Counter[int] = Counter()
    chosen = set()
    for path, label in shuffled:
        seen[label] += 1
        if seen[label] <= shots:
            chosen.add(path)
    return tuple(row for row in few_shot if row[0] in chosen)


def _once(output: Path, work: Callable[[], object]) -> None:
    """Do work whose output is not there yet; outputs are complete or missing."""
    if not output.exists():
        work()
