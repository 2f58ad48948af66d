"""Batches are copied to the device one ahead of the step that uses them."""

from collections.abc import Iterator

import pytest
import tiny
import torch
from point import Point, downhill

from pd_core.core.errors import BadData
from pd_core.data.loading.images import Batch
from pd_core.training.loop.fit import INITIAL_LOSS_SCALE
from pd_core.training.loop.optimizer import make_sgd
from pd_core.training.loop.transfer import double_buffered, transferred

CPU = torch.device("cpu")


class Read(tiny.Batches):
    """Batches of an epoch that count how many have been read."""

    read = 0

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start=start):
            self.read += 1
            yield batch


def test_the_batches_are_the_same_in_the_same_order() -> None:
    source = tiny.Batches(7, size=2)
    expected = list(source.epoch(1))

    for way in (transferred, double_buffered):
        given = list(way(source.epoch(1), CPU))
        assert [batch.number for _, batch in given] == [0, 1, 2]
        for (indices, batch), other in zip(given, expected, strict=True):
            assert torch.equal(indices, other.indices)
            assert torch.equal(batch.images, other.images)


def test_one_batch_is_read_ahead_of_the_step() -> None:
    source = Read(6, size=2)
    ahead = [source.read - done for done, _ in enumerate(double_buffered(source.epoch(1), CPU))]

    assert ahead == [2, 2, 1]


def test_an_epoch_without_batches_has_none() -> None:
    assert list(double_buffered(iter(()), CPU)) == []


def test_an_error_of_the_source_is_raised() -> None:
    def broken() -> Iterator[Batch]:
        yield next(tiny.Batches(2, size=2).epoch(1))
        raise BadData("corrupt")

    with pytest.raises(BadData, match="corrupt"):
        list(double_buffered(broken(), CPU))


@pytest.mark.parametrize("overflows", [0, 1, 2])
def test_a_fused_optimiser_takes_the_same_steps_after_overflows_too(overflows: int) -> None:
    values = []
    for fused in (False, True):
        point = Point()
        step = downhill(point)
        sgd = make_sgd(
            list(point.parameters()), lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_LOSS_SCALE)
        for number in range(5):
            sgd.zero_grad()
            batch = next(tiny.Batches(2, size=2).epoch(1))
            size = 1e38 if number < overflows else 1.0
            loss = step(batch.indices, batch.images)["loss"] * size
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(sgd)
            scaler.update()
        values.append(point.value.detach().clone())

    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=0)
    assert scaler.get_scale() == INITIAL_LOSS_SCALE / 2**overflows
