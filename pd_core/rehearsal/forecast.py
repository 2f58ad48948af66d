"""Estimates of complete data sets from the stages of a few that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pd_core.pipeline.stages.params import DatasetParams
from pd_core.rehearsal.estimate import Estimate, Needs, Part, Rate, StageEstimate, interpolated
from pd_core.rehearsal.timeline import Rates
from pd_core.rehearsal.workload import Load, Sizes, load_of

PREPARATION, DECODING, TEACHER = "preparation", "decoding", "teacher"
STUDENT, BASELINE, EVALUATION = "student", "baseline", "evaluation"
OVERHEAD = "start and end of stages"
_KINDS = {
    "prepare": PREPARATION,
    "teacher": TEACHER,
    "class_vectors": TEACHER,
    "student": STUDENT,
    "tuned_student": BASELINE,
    "evaluate": EVALUATION,
}

_WAITING = 0.8  # share of a step that images take to arrive, above which it waits for them

_FREE = {
    "lr", "warmup_lr", "warmup_epochs", "momentum", "weight_decay", "max_grad_norm",
    "on_non_finite", "epochs", "view_epochs", "accumulate", "crop_scale", "flip", "template",
    "text_loss_weight", "image_loss_weight", "logits_loss_weight", "gpa_mean", "gpa_std",
    "text_depth", "image_depth", "templates", "frozen_features",
    "temperature", "kd_weight", "teacher_targets", "selection",
}  # fmt: skip
"""Parameters that do not change the cost of a step."""


@dataclass(frozen=True)
class Measured:
    """A stage that was measured.

    Attributes:
        load: units that were measured.
        rates: their costs.
    """

    load: Load
    rates: Rates


@dataclass(frozen=True)
class Rehearsed:
    """A data set whose stages were measured.

    Attributes:
        params: of the data set.
        sizes: of the complete data set.
        decoding: cost of reading an image.
        stages: measurements by stage.
    """

    params: DatasetParams
    sizes: Sizes
    decoding: Rate
    stages: Mapping[str, Measured]


def cost_key(stage: str, params: DatasetParams) -> str:
    """Return what the cost of a stage's units depends on, apart from the sizes of the data set."""
    teacher = params.teacher.model_dump_json(exclude=_FREE)
    match stage:
        case "student" | "evaluate":
            return teacher + params.student.model_dump_json(exclude=_FREE)
        case "tuned_student":
            tuned = params.tuned_student
            return "" if tuned is None else tuned.model_dump_json(exclude=_FREE)
        case _:
            return teacher


def forecast(
    params: DatasetParams,
    sizes: Sizes,
    stages: Sequence[str],
    rehearsed: Sequence[Rehearsed],
    *,
    name: str = "",
    repeats: int = 1,
) -> Estimate:
    """Estimate the complete stages of a data set.

    Args:
        params: of the data set.
        sizes: of the complete data set.
        stages: in order.
        rehearsed: data sets that were measured, at least one with each stage.
        name: shown instead of the data set's.
        repeats: number of seeds.
    """
    decoding = _decoding(params, rehearsed)
    estimates = [
        _stage(stage, params, sizes, _alike(stage, params, rehearsed), decoding) for stage in stages
    ]
    return Estimate(tuple(estimates), name or params.name, repeats)


def _decoding(params: DatasetParams, rehearsed: Sequence[Rehearsed]) -> Rate:
    """Return the cost of reading an image: the data set's own, or the mean of the others."""
    own = [each.decoding for each in rehearsed if each.params.name == params.name]
    return own[0] if own else Rate.of([each.decoding.each for each in rehearsed])


def _alike(stage: str, params: DatasetParams, rehearsed: Iterable[Rehearsed]) -> list[Measured]:
    """Return the data set's own measurement, or those of data sets with the same costs."""
    there = [each for each in rehearsed if stage in each.stages]
    own = [each for each in there if each.params.name == params.name]
    key = cost_key(stage, params)
    alike = own or [each for each in there if cost_key(stage, each.params) == key] or there
    return [each.stages[stage] for each in alike]


def _stage(
    stage: str, params: DatasetParams, sizes: Sizes, measured: Sequence[Measured], decoding: Rate
) -> StageEstimate:
    """Estimate a stage from measurements of it."""
    load = load_of(stage, params, sizes)

    def rate(unit: Callable[[Rates], Rate], size: Callable[[Load], int]) -> Rate:
        points = [(size(each.load), unit(each.rates)) for each in measured]
        return interpolated(points, size(load))

    rates = Rates(
        start=rate(lambda r: r.start, lambda each: each.start),
        live=rate(lambda r: r.live, lambda each: each.step),
        recalled=rate(lambda r: r.recalled, lambda each: each.step),
        epoch=rate(lambda r: r.epoch, lambda each: each.step),
        image=rate(lambda r: r.image, lambda _: 0),
        end=rate(lambda r: r.end, lambda each: each.step),
    )
    parts = [Part(OVERHEAD, 1, rates.start), Part(OVERHEAD, 1, rates.end)]
    reading = _Reading(decoding.each.wall, params.run.workers)
    if load.epochs:
        checked = max(each.load.checked for each in measured)
        parts += _training(stage, params, load, rates, reading, max(0.0, load.checked - checked))
    if load.images and stage == "prepare":
        parts.append(Part(PREPARATION, load.images, rates.image))
    elif load.images:
        parts += reading.split(EVALUATION, load.images, rates.image)
    return StageEstimate(
        stage,
        tuple(part for part in parts if part.units),
        _needs(stage, params, load, measured),
        sum(each.load.steps for each in measured),
        load.steps,
    )


@dataclass(frozen=True)
class _Reading:
    """Reading of images beside the computation.

    Attributes:
        seconds: of an image.
        workers: processes that decode; 0 for that of the training.
    """

    seconds: float
    workers: int

    def share(self, rate: Rate, images: int = 1) -> float:
        """Return the share of a unit that waits for its images.

        Workers decode while the unit before is computed: it waits for them only if they take
        about as long.
        """
        share = self.seconds * images / max(1, self.workers) / (rate.each.wall or 1.0)
        return min(1.0, share) if self.workers == 0 or share > _WAITING else 0.0

    def split(self, kind: str, units: float, rate: Rate, images: int = 1) -> list[Part]:
        """Return the two parts of units with so many images each: decoding, and the rest."""
        decoding = rate.each * self.share(rate, images)
        rest = Rate(rate.each - decoding, rate.error)
        return [Part(DECODING, units, Rate(decoding)), Part(kind, units, rest)]


def _training(
    stage: str,
    params: DatasetParams,
    load: Load,
    rates: Rates,
    reading: _Reading,
    unchecked: float,
) -> list[Part]:
    """Return the parts of a training; batches of its check cost what a live step costs, at most."""
    kind = _KINDS[stage]
    config = params.student if stage == "student" else params.teacher
    frozen = Rate(rates.live.each - rates.recalled.each, rates.live.error)
    read, rest = reading.split(kind, load.live + unchecked, rates.live, config.batch_size)
    parts = [
        read,
        rest,
        Part(kind, load.recalled, rates.recalled),
        Part(kind, load.epochs, rates.epoch),
        Part(TEACHER, load.recorded, frozen),
    ]
    if stage == "student":  # what its live steps do more than others is the teacher's
        teacher = frozen.each - read.rate.each
        parts[1] = Part(kind, rest.units, Rate(rest.rate.each - teacher, rest.rate.error))
        parts.append(Part(TEACHER, rest.units, Rate(teacher)))
    return parts


def _needs(stage: str, params: DatasetParams, load: Load, measured: Sequence[Measured]) -> Needs:
    """Return memory and disk space.

    Memory grows with the texts, up to the limit of their gradients; lists and predictions grow
    with the images.
    """

    def at(need: Callable[[Needs], float], most: float) -> float:
        sizes = [(each.load.step or each.load.start, need(each.rates.needs)) for each in measured]
        (low, first), (high, last) = min(sizes), max(sizes)
        slope = max(0.0, (last - first) / (high - low)) if high > low else 0.0
        return max(first, last) + min(most, slope * max(0, (load.step or load.start) - high))

    gradients = params.teacher.text_memory_gb * 2**30
    disk = max(each.rates.needs.disk for each in measured)
    if stage in ("prepare", "evaluate"):
        one = measured[0]
        disk = one.rates.needs.disk / max(1, one.load.images) * load.images
    return Needs(at(lambda n: n.memory, gradients), at(lambda n: n.gpu, gradients), disk)
