"""A training that is interrupted stores its state, and resumes exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from point import STEPS, Point, Step, downhill, train
from tiny import Batches, checkpoints
from torch import Tensor

from pd_core.core.errors import Interrupted


class Stop:
    """Requests a stop after a number of steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, step: Step) -> Step:
        def counted(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
            self.left -= 1
            return step(indices, images)

        return counted

    def __call__(self) -> bool:
        return self.left <= 0


@pytest.mark.parametrize("after", range(1, 2 * STEPS + 1))
@pytest.mark.parametrize("kind", ["plain", "averaging", "score"])
def test_a_run_stopped_at_any_step_resumes_there_and_ends_the_same(
    tmp_path: Path, after: int, kind: str
) -> None:
    def whole(point: Point, step: Step, **rest: Any) -> list[dict[str, float]]:
        options: dict[str, dict[str, Any]] = {
            "plain": {},
            "averaging": {"averaging": (0.25, 0.75)},
            "score": {"score": lambda: float(point.value.detach().sum())},  # the first is best
        }
        return train(point, step, momentum=0.9, **options[kind], **rest)

    def slope(indices: Tensor) -> float:
        return 1.0 + float(indices[0])

    expected = Point()
    history = whole(expected, downhill(expected, slope))
    stop, stopped, resumed = Stop(after), Point(), Point()
    reported: list[tuple[int, dict[str, float]]] = []

    kept = checkpoints(tmp_path, interrupted=stop)
    with pytest.raises(Interrupted) as caught:
        whole(stopped, stop.step(downhill(stopped, slope)), checkpoints=kept)
    again = whole(
        resumed, downhill(resumed, slope), checkpoints=checkpoints(tmp_path),
        on_epoch=lambda *epoch: reported.append(epoch),
    )  # fmt: skip

    epoch, done = (after - 1) // STEPS + 1, (after - 1) % STEPS + 1
    path = tmp_path / "checkpoints" / f"checkpoint-{epoch:06}-{done:09}.safetensors"
    message = f"interrupted at epoch {epoch}, after {done} of its 3 steps; the state is in '{path}'"
    assert str(caught.value).startswith(message)
    assert torch.equal(resumed.value, expected.value)
    assert again == history
    assert reported == list(enumerate(history, start=1))


def test_a_run_resumes_after_the_step_at_which_it_was_stopped(tmp_path: Path) -> None:
    stop, stopped, resumed = Stop(after=2), Point(), Point()
    seen: list[tuple[int, int]] = []
    kept = checkpoints(tmp_path, interrupted=stop)
    with pytest.raises(Interrupted, match="at epoch 1, after 2 of its 3 steps"):
        train(stopped, stop.step(downhill(stopped)), checkpoints=kept)

    kept = checkpoints(tmp_path)
    train(resumed, checkpoints=kept, on_progress=lambda *counts: seen.append(counts))

    assert seen == [(done, 6) for done in (3, 4, 5, 6)]


def test_the_losses_of_a_run_that_goes_on_are_those_of_the_steps_before_and_after(
    tmp_path: Path,
) -> None:
    stop, stopped, resumed = Stop(after=2), Point(), Point()
    seen: list[tuple[int, float]] = []
    given: dict[str, Any] = {"on_loss": lambda *loss: seen.append(loss)}
    kept = checkpoints(tmp_path, interrupted=stop)
    with pytest.raises(Interrupted, match="at epoch 1, after 2 of its 3 steps"):
        train(stopped, stop.step(downhill(stopped)), checkpoints=kept, **given)

    train(resumed, checkpoints=checkpoints(tmp_path), **given)

    # 4, and less by four times the rate after each step; the rate is halved in the second epoch.
    assert [number for number, _ in seen] == [2, 3, 6]
    assert [mean for _, mean in seen] == pytest.approx([(4 + 3.6) / 2, 3.2, (2.8 + 2.6 + 2.4) / 3])


def test_states_are_stored_within_an_epoch_only_when_they_are_due(tmp_path: Path) -> None:
    names: list[list[str]] = []

    def look(*_: int) -> None:
        names.append(sorted(file.name for file in (tmp_path / "checkpoints").glob("*.safetensors")))

    for minutes in (60, 0):
        names.clear()
        kept = checkpoints(tmp_path, key=str(minutes), minutes=minutes)
        train(Point(), epochs=1, checkpoints=kept, on_progress=look)
        if minutes:
            assert names == [[]] * STEPS
    assert names == [
        [],
        ["checkpoint-000001-000000001.safetensors"],
        ["checkpoint-000001-000000001.safetensors", "checkpoint-000001-000000002.safetensors"],
    ]


def test_damaged_pictures_are_still_known_after_an_interruption(tmp_path: Path) -> None:
    stop, stopped, batches = Stop(after=2), Point(), Batches(6, size=2)
    batches.corrupt = {5, 1}
    kept = checkpoints(tmp_path, interrupted=stop)
    with pytest.raises(Interrupted):
        train(stopped, stop.step(downhill(stopped)), batches=batches, checkpoints=kept)
    again = Batches(6, size=2)

    train(Point(), batches=again, checkpoints=checkpoints(tmp_path))

    assert again.corrupt == {1, 5}
