"""Sizes of data sets, and the units of work of each stage that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pd_core.core.options import Computed, TeacherMethod
from pd_core.data.catalog.catalogue import DatasetSpec, PrepareConfig
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.data.loading.splits import Protocol, base_count
from pd_core.pipeline.stages.params import DatasetParams
from pd_core.training.loop.config import OptimConfig

CHECKED = 256
"""Images that a trained teacher or student is checked on (`SAMPLE` of both checks)."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a prepared data set.

    Attributes:
        classes: number of classes.
        taught: number of classes with labels for the teacher.
        few_shot: number of labelled images of the teacher.
        unlabelled: number of images to distil on.
        test: number of images to evaluate on.
        images: number of images in all.
    """

    classes: int
    taught: int
    few_shot: int
    unlabelled: int
    test: int
    images: int


def sizes_of(prepared: Path, split: str) -> Sizes:
    """Return the sizes of the output of the stage `prepare`.

    Args:
        prepared: the folder.
        split: that is evaluated on. If it is `test` and has no labels, it is the unlabelled images.
    """
    content, unlabelled = read_prepared(prepared), read_unlabelled(prepared)
    measured = content.test if split == "test" else content.val
    every = {path for path, _ in (*content.few_shot, *content.val, *content.test)}
    return Sizes(
        classes=len(content.classes),
        taught=len(content.taught),
        few_shot=len(content.few_shot),
        unlabelled=len(unlabelled),
        test=len(measured) or len(unlabelled),
        images=len(every | {*unlabelled}),
    )


def published_sizes(spec: DatasetSpec, config: PrepareConfig, split: str) -> Sizes:
    """Return the sizes of a data set of the catalogue that is not here.

    Args:
        spec: its row, with all counts.
        config: of the stage `prepare`.
        split: that is evaluated on.
    """
    train, val, test = (count or 0 for count in (spec.train, spec.val, spec.test))
    classes = spec.num_classes
    taught = {
        Protocol.BASE_TO_NOVEL: base_count(classes),
        Protocol.ALL_CLASSES: classes,
    }.get(config.protocol, 0)
    most = config.unlabelled_per_class
    listed = train if most is None else min(train, most * classes)
    return Sizes(
        classes=classes,
        taught=taught,
        few_shot=taught * min(config.shots, train // classes),
        unlabelled=test if config.transductive else listed,
        test=test if split == "test" else val,
        images=train + val + test,
    )


@dataclass(frozen=True)
class Load:
    """Units of work of a stage.

    Attributes:
        start: class texts that are encoded before the first unit.
        step: class texts that are encoded in each step.
        live: steps in which the frozen tower of the images is computed.
        recalled: steps in which its features are in memory or in the feature cache.
        epochs: of a training.
        recorded: steps that fill the feature cache before the training.
        checked: batches of the check after a training.
        images: images that are read, or classified, one by one.
    """

    start: int = 0
    step: int = 0
    live: int = 0
    recalled: int = 0
    epochs: int = 0
    recorded: int = 0
    checked: float = 0.0
    images: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of the training, or of images where there is none."""
        return self.live + self.recalled or self.images


def load_of(stage: str, params: DatasetParams, sizes: Sizes) -> Load:
    """Return the units of work of a stage of a data set.

    Raises:
        KeyError: the stage cannot be measured.
    """
    match stage:
        case "prepare":
            return Load(images=sizes.images)
        case "class_vectors":
            return Load(start=sizes.classes)
        case "evaluate":
            return Load(start=2 * sizes.classes, images=sizes.test)
        case "student":
            student = params.student
            cached = student.teacher_targets is Computed.CACHED
            return _training(student, student.batch_size, sizes.unlabelled, cached=cached)
        case "teacher" | "tuned_student":
            tuning = params.teacher if stage == "teacher" else params.tuned_student
            if tuning is None:
                raise KeyError(stage)
            if tuning.original is not None or tuning.method is TeacherMethod.CLIP:
                return Load()
            frozen = tuning.method is TeacherMethod.PROMPTSRC
            return _training(
                tuning, tuning.batch_size, sizes.few_shot,
                cached=frozen and tuning.frozen_features is Computed.CACHED,
                start=(1 + (tuning.templates if frozen else 0)) * sizes.taught,
                step=sizes.taught,
                images=sizes.test if stage == "tuned_student" else 0,
            )  # fmt: skip
        case _:
            raise KeyError(stage)


def _training(
    config: OptimConfig,
    batch_size: int,
    count: int,
    *,
    cached: bool,
    start: int = 0,
    step: int = 0,
    images: int = 0,
) -> Load:
    """Return the units of a training on so many images; an epoch has full batches only."""
    each, distinct = count // batch_size, config.distinct_epochs
    return Load(
        start=start,
        step=step,
        live=0 if cached else distinct * each,
        recalled=(config.epochs if cached else config.epochs - distinct) * each,
        epochs=config.epochs,
        recorded=distinct * each if cached else 0,
        checked=min(CHECKED, count) / batch_size,
        images=images,
    )
