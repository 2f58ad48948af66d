"""The tests of paired answers give what SciPy gives, or what going through all cases gives."""

from itertools import product
from statistics import harmonic_mean

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pd_core.evaluation.significance import (
    Paired,
    harmonic_mean_test,
    over_datasets,
    paired,
    signed_ranks,
)

Halves = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def answers(n: int, share: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(n) < share


def test_pairs_are_counted_by_who_is_right() -> None:
    first, second = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert paired(first, second) == Paired(pictures=5, gained=2, lost=1, both=1)


@pytest.mark.parametrize(("gained", "lost"), [(1, 6), (9, 3), (4, 4), (0, 0), (12, 0)])
def test_mcnemars_test_is_the_binomial_test_of_the_pictures_that_one_is_right_about(
    gained: int, lost: int
) -> None:
    n = gained + lost
    expected = min(1.0, 2 * stats.binom.cdf(min(gained, lost), n, 0.5)) if n else 1.0
    assert Paired(50, gained, lost, 3).mcnemar() == pytest.approx(expected)


def naive_harmonic_mean_test(base: Halves, novel: Halves) -> float:
    """Exchange both ones' answers to single pictures, in all ways there are."""

    def difference(one: Halves, other: Halves) -> float:
        means = [harmonic_mean([half.mean() for half in halves]) for halves in (one, other)]
        return abs(float(means[0] - means[1]))

    size = len(base[0])
    both = np.stack([np.concatenate(pair) for pair in zip(base, novel, strict=True)])
    observed = difference((base[0], novel[0]), (base[1], novel[1]))
    apart = np.flatnonzero(both[0] != both[1])
    as_great = 0
    for chosen in product((False, True), repeat=len(apart)):
        changed = both.copy()
        swapped = apart[list(chosen)]
        changed[:, swapped] = changed[::-1, swapped]
        halves = [(row[:size], row[size:]) for row in changed]
        as_great += difference(halves[0], halves[1]) >= observed - 1e-12
    return float(as_great / 2 ** len(apart))


@pytest.mark.parametrize("seed", range(4))
def test_the_test_of_harmonic_means_goes_through_all_exchanges(seed: int) -> None:
    base = answers(14, 0.7, seed), answers(14, 0.8, seed + 100)
    novel = answers(9, 0.4, seed + 200), answers(9, 0.7, seed + 300)
    found = harmonic_mean_test(paired(*base), paired(*novel))
    assert found == pytest.approx(naive_harmonic_mean_test(base, novel))


def test_where_only_one_half_differs_it_is_mcnemars() -> None:
    base, novel = Paired(60, gained=3, lost=11, both=30), Paired(40, gained=0, lost=0, both=25)
    assert harmonic_mean_test(base, novel) == pytest.approx(base.mcnemar())
    assert harmonic_mean_test(novel, base) == pytest.approx(base.mcnemar())


def test_who_is_never_right_has_a_harmonic_mean_of_zero() -> None:
    never, once = Paired(5, 0, 0, 0), Paired(5, 1, 0, 0)
    assert harmonic_mean_test(never, once) == 1.0


def test_signed_ranks_are_scipys_exact_test_where_there_are_no_ties() -> None:
    differences = [1.5, -0.3, 2.1, 0.9, -0.2, 3.3, 0.4]
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_ranks(differences) == pytest.approx(expected)
    assert signed_ranks([*differences, 0.0]) == pytest.approx(expected)  # it says nothing


def test_signed_ranks_with_ties_go_through_all_signs() -> None:
    differences = np.array([1.0, 1.0, -1.0, 2.0, 2.0, -3.0])
    ranks = stats.rankdata(np.abs(differences))
    centre = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - centre)
    sums = np.array([ranks[list(signs)].sum() for signs in product((False, True), repeat=6)])
    expected = np.mean(np.abs(sums - centre) >= observed - 1e-12)
    assert signed_ranks(list(differences)) == pytest.approx(expected)


def test_equal_numbers_are_no_evidence() -> None:
    assert signed_ranks([0.0, 0.0, 1e-12]) == 1.0


def test_many_data_sets_are_tested_as_well() -> None:
    differences = list(np.random.default_rng(0).normal(0.5, 1, 40))
    assert signed_ranks(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_seeds_of_a_data_set_are_averaged_before_the_test() -> None:
    first = {"a": [71.0, 73.0], "b": [60.0, 64.0], "c": [55.0], "only here": [1.0]}
    second = {"a": [70.0, 72.0], "b": [61.0, 59.0], "c": [50.0, 54.0], "only there": [99.0]}
    found = over_datasets(first, second)
    assert found.datasets == 3
    assert found.difference == pytest.approx(2.0)
    assert found.p == pytest.approx(stats.wilcoxon([1.0, 2.0, 3.0]).pvalue)


def test_one_data_set_alone_says_nothing_of_others() -> None:
    assert over_datasets({"a": [3.0, 4.0]}, {"a": [1.0, 1.0]}).p is None


def test_methods_without_a_data_set_in_common_are_not_compared() -> None:
    with pytest.raises(ValueError, match="share no data set"):
        over_datasets({"a": [1.0]}, {"b": [1.0]})
