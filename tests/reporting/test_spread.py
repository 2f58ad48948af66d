"""Means and deviations are those of NumPy; a wild seed is named, and no one beside it."""

import statistics
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from pd_core.reporting.outliers import LEAST, outliers
from pd_core.reporting.protocol_summary import spread

SEEDS = 3


def cells(values: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Name the rows of (data sets, seeds) a, b, c... and the seeds 1, 2, 3..."""
    return {
        chr(ord("a") + place): {str(seed): float(value) for seed, value in enumerate(row, 1)}
        for place, row in enumerate(values)
    }


def normal(datasets: int, seeds: int, std: float, draw: int) -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(draw)
    middles = generator.uniform(50, 90, (datasets, 1))
    return cells(middles + generator.normal(0, std, (datasets, seeds)))


def named(table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    return [(outlier.cell, outlier.seed) for outlier in outliers(table)]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_mean_and_sample_deviation_are_those_of_other_libraries(count: int) -> None:
    values = np.random.default_rng(count).normal(70, 3, count).tolist()
    found = spread("hm", values)
    assert found["hm"] == round(float(np.mean(values)), 2)
    assert found["hm_std"] == round(float(np.std(values, ddof=1)), 2)
    assert found["hm_n"] == count


def test_a_single_seed_has_no_deviation() -> None:
    assert spread("hm", [70.0]) == {"hm": 70.0}


@pytest.mark.parametrize("sign", [-10, 10])
@pytest.mark.parametrize("datasets", [4, 11])
@pytest.mark.parametrize("draw", range(10))
def test_one_seed_ten_points_off_is_named_and_no_other(
    draw: int, datasets: int, sign: float
) -> None:
    table = normal(datasets, SEEDS, 0.7, draw)
    table["b"]["2"] = statistics.fmean([table["b"]["1"], table["b"]["3"]]) + sign
    (found,) = outliers(table)
    assert (found.cell, found.seed, found.value) == ("b", "2", table["b"]["2"])
    assert found.deviation == pytest.approx(sign)
    assert found.others == pytest.approx(found.value - sign)


def test_a_wild_seed_of_the_only_data_set_does_not_hide_itself() -> None:
    assert named({"a": {"1": 60.0, "2": 70.0, "3": 70.4}}) == [("a", "1")]


def test_wild_seeds_of_several_data_sets_do_not_hide_each_other() -> None:
    table = normal(11, SEEDS, 0.7, 0)
    wild = [("a", "1"), ("c", "3"), ("f", "2"), ("k", "1")]
    for name, seed in wild:
        table[name][seed] = statistics.median(table[name].values()) - 10
    assert named(table) == wild


def test_two_wild_seeds_of_five_are_both_named() -> None:
    table = normal(4, 5, 0.7, 0)
    table["b"]["1"] = table["b"]["4"] = statistics.median(table["b"].values()) - 10
    assert named(table) == [("b", "1"), ("b", "4")]


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_normal_spreads_give_few_false_alarms(seeds: int, std: float) -> None:
    tables = 200
    false = [bool(outliers(normal(11, seeds, std, draw))) for draw in range(tables)]
    assert sum(false) <= (0 if std <= 1 else 0.08 * tables)


def test_cells_that_do_not_vary_have_no_outlier_of_less_than_the_least_points() -> None:
    table = cells(np.full((11, SEEDS), 70.0))
    assert named(table) == []
    table["a"]["2"] += LEAST - 0.01
    assert named(table) == []
    table["a"]["2"] += 0.02
    assert named(table) == [("a", "2")]


def test_what_is_far_off_depends_on_how_much_all_data_sets_vary() -> None:
    calm, wide = normal(11, SEEDS, 0.5, 1), normal(11, SEEDS, 5.0, 1)
    for table in (calm, wide):
        table["a"] = {"1": 60.0, "2": 70.0, "3": 70.0}
    assert named(calm) == [("a", "1")]
    assert named(wide) == []


@pytest.mark.parametrize(
    "table",
    [
        {"a": {"1": 60.0, "2": 70.0}, "b": {"1": 70.0, "2": 70.1}},
        {"a": {"1": 60.0}, "b": {"1": 90.0}},
    ],
)
def test_one_or_two_seeds_name_no_outlier(table: dict[str, dict[str, float]]) -> None:
    assert named(table) == []


def test_seeds_that_are_evenly_apart_name_nobody() -> None:
    table = normal(11, SEEDS, 0.7, 2)
    table["a"] = {"1": 60.0, "2": 70.0, "3": 80.0}
    assert named(table) == []
