"""The costs of a stage's units are read from its progress."""

from itertools import accumulate

import pytest

from pd_core.rehearsal.timeline import Mark, Rates, Timeline, image_rates, training_rates


def mark(wall: float, done: int, total: int = 100) -> Mark:
    return Mark(wall=wall, cpu=2 * wall, done=done, total=total)


def timeline(marks: list[Mark], end: float) -> Timeline:
    return Timeline(marks=tuple(marks), end=mark(end, 0), memory=7, gpu=3)


def training(durations: list[float]) -> list[Mark]:
    return [mark(wall, done) for done, wall in enumerate(accumulate(durations), start=1)]


def walls(rates: Rates) -> dict[str, float]:
    names = ("start", "live", "recalled", "epoch", "image", "end")
    return {name: round(getattr(rates, name).each.wall, 6) for name in names}


def test_steps_of_the_second_epoch_are_recalled_and_the_epochs_end_is_apart() -> None:
    # A start of 10 s, live steps of 2 s, an epoch's end of 0.5 s, recalled steps of 1 s.
    marks = training([12.0, 2.0, 2.0, 1.5, 1.0, 1.0])

    rates = training_rates(timeline(marks, marks[-1].wall + 4.0), epochs=2)

    expected = {"start": 10.0, "live": 2.0, "recalled": 1.0, "epoch": 0.5, "image": 0.0, "end": 4.0}
    assert walls(rates) == expected
    assert (rates.needs.memory, rates.needs.gpu) == (7, 3)
    assert rates.live.each.cpu == 4.0


def test_a_step_with_its_epoch_is_measured_where_an_epoch_has_one() -> None:
    marks = training([12.0, 2.0, 1.5, 0.5])

    rates = training_rates(timeline(marks, marks[-1].wall + 4.0), epochs=4)

    assert walls(rates) == {
        "start": 10.0, "live": 2.0, "recalled": 1.0, "epoch": 0.0, "image": 0.0, "end": 4.0
    }  # fmt: skip


def test_images_after_a_training_are_a_part_of_their_own() -> None:
    marks = training([12.0, 2.0, 1.0, 1.0])
    images = [mark(marks[-1].wall + 5.0 * n, 10 * n, 20) for n in (1, 2)]

    rates = training_rates(timeline([*marks, *images], images[-1].wall + 3.0), epochs=4)

    assert (walls(rates)["image"], walls(rates)["end"]) == (0.5, 3.0)


def test_the_first_batch_of_images_is_no_part_of_the_start() -> None:
    marks = [mark(20.0 + 5.0 * n, 10 * n) for n in range(1, 5)]

    rates = image_rates(timeline(marks, 50.0))

    assert (walls(rates)["start"], walls(rates)["image"], walls(rates)["end"]) == (20.0, 0.5, 10.0)
    assert rates.image.error == pytest.approx(0.0)


def test_a_stage_without_progress_is_all_start() -> None:
    assert walls(image_rates(timeline([], 9.0)))["start"] == 9.0
