"""Epochs that come again are read once, and are the same batches as before."""

from collections.abc import Iterator
from typing import Any

import tiny
import torch
import trainings

from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.teacher import Teacher
from pd_core.training.loop.repeated import RepeatedBatches


class Counted(tiny.Batches):
    """Batches that count how often each epoch is read, with a corrupt image in epoch 2."""

    def __init__(self, count: int = 8, *, size: int = 2) -> None:
        super().__init__(count, size=size)
        self.read: list[tuple[int, int]] = []

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        self.read.append((epoch, start))
        yield from super().epoch(epoch, start=start)
        self.left_out = 1 if epoch == 2 else 0


def views(batches: Iterator[Batch]) -> list[tuple[int, list[int], float]]:
    return [(b.number, b.indices.tolist(), float(b.images.double().sum())) for b in batches]


BYTES = 8 * 3 * 16 * 16 * 4  # of an epoch


def test_an_epoch_is_read_once_and_is_the_same_again() -> None:
    source = Counted()
    repeated = RepeatedBatches(source)
    first = views(repeated.epoch(1))

    assert first == views(tiny.Batches(8, size=2).epoch(1))
    assert views(repeated.epoch(1)) == first
    assert views(repeated.epoch(1, start=2)) == first[2:]
    assert source.read == [(1, 0)]


def test_an_epoch_that_was_not_read_to_its_end_is_read_again() -> None:
    source = Counted()
    repeated = RepeatedBatches(source)
    assert len(views(repeated.epoch(1, start=3))) == 1
    next(repeated.epoch(2))

    assert len(views(repeated.epoch(1))) == len(views(repeated.epoch(2))) == 4
    assert source.read == [(1, 3), (2, 0), (1, 0), (2, 0)]


def test_epochs_without_room_are_read_each_time() -> None:
    source = Counted()
    repeated = RepeatedBatches(source, memory=2 * BYTES - 1)
    for _ in range(2):
        assert [len(views(repeated.epoch(epoch))) for epoch in (1, 2)] == [4, 4]

    assert source.read == [(1, 0), (2, 0), (2, 0)]


def test_corrupt_images_are_counted_for_each_epoch() -> None:
    repeated = RepeatedBatches(Counted())
    counts = []
    for epoch in (1, 2, 1, 2):
        views(repeated.epoch(epoch))
        counts.append(repeated.left_out)

    assert counts == [0, 1, 0, 1]


def test_a_training_on_views_that_come_again_reads_each_of_them_once() -> None:
    values: dict[str, Any] = {"epochs": 5, "lr": 0.01, "view_epochs": 2}
    small, teacher = tiny.towers("small", seed=1), Teacher(tiny.towers("large"))
    vectors = class_vectors.build(teacher, tiny.NAMES)
    source = Counted()
    student, history = trainings.distill(small, teacher, vectors, source, **values)

    assert source.read == [(1, 0), (2, 0)]
    assert [epoch.get("skipped", 0) for epoch in history] == [0, 1, 0, 1, 0]
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())
