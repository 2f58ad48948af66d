"""Estimates follow from measured rates: lines over sizes, sums, spread, and the slowest part."""

import math

import pytest

from pd_core.rehearsal.estimate import (
    Cost,
    Estimate,
    Needs,
    Part,
    Rate,
    StageEstimate,
    interpolated,
    together,
)


def rate(wall: float, error: float | None = 0.0) -> Rate:
    return Rate(Cost(wall, 2 * wall), error)


def stage(*parts: Part, memory: float = 0, disk: float = 0) -> StageEstimate:
    return StageEstimate("teacher", parts, Needs(memory=memory, disk=disk))


def test_a_rate_is_the_mean_of_its_units_with_its_standard_error() -> None:
    measured = Rate.of([Cost(1.0, 2.0), Cost(2.0, 2.0), Cost(3.0, 5.0)])

    assert measured.each == Cost(2.0, 3.0)
    assert measured.error == pytest.approx(1 / math.sqrt(3))


def test_the_spread_of_a_single_unit_is_unknown() -> None:
    assert Rate.of([Cost(1.0, 1.0)]).error is None


@pytest.mark.parametrize(("size", "wall"), [(10, 2.0), (15, 3.0), (20, 4.0), (100, 20.0)])
def test_a_rate_is_read_on_the_line_through_the_smallest_and_largest_size(
    size: int, wall: float
) -> None:
    points = [(20, rate(4.0)), (10, rate(2.0))]

    each = interpolated(points, size).each

    assert (each.wall, each.cpu) == pytest.approx((wall, 2 * wall))


def test_far_from_the_measured_sizes_the_spread_is_larger() -> None:
    points = [(10, rate(2.0, 0.1)), (20, rate(4.0, 0.1))]
    between, beyond = (interpolated(points, size).error for size in (15, 100))

    assert between == pytest.approx(0.1 / math.sqrt(2))
    assert beyond == pytest.approx(0.1 * math.hypot(8, 9))


def test_a_rate_that_falls_with_the_size_is_noise() -> None:
    assert interpolated([(10, rate(4.0)), (20, rate(2.0))], 100).each.wall == 3.0


def test_one_size_alone_holds_for_all() -> None:
    assert interpolated([(10, rate(4.0, 0.5)), (10, rate(2.0, 0.5))], 100).each.wall == 3.0


def test_a_stage_takes_as_long_as_its_parts() -> None:
    estimate = stage(Part("start", 1, rate(5.0)), Part("steps", 100, rate(0.5, 0.01)))

    assert estimate.cost == Cost(55.0, 110.0)
    assert estimate.error == pytest.approx(1.0)


def test_an_unknown_spread_of_a_part_is_unknown_in_all() -> None:
    unknown = stage(Part("steps", 100, rate(0.5, None)))

    assert Estimate((stage(Part("start", 1, rate(1.0))), unknown)).error is None


def test_several_seeds_take_as_many_times_the_time_and_disk_but_no_more_memory() -> None:
    one = stage(Part("steps", 10, rate(1.0)), memory=5, disk=7)
    three = Estimate((one, one), "dtd", repeats=3)

    assert three.cost == Cost(60.0, 120.0)
    assert three.needs == Needs(memory=5, disk=42)


def test_data_sets_add_up_and_the_slowest_part_is_first() -> None:
    small = Estimate((stage(Part("teacher", 1, rate(30.0)), Part("decoding", 1, rate(5.0))),))
    large = Estimate((stage(Part("decoding", 1, rate(60.0)), memory=9),), repeats=2)
    total = together([small, large])

    assert total.cost.wall == 155.0
    assert list(total.kinds().items()) == [("decoding", 125.0), ("teacher", 30.0)]
    assert total.needs.memory == 9
