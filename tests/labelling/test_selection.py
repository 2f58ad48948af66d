"""Chosen images are uncertain, different from each other, and balanced over predicted classes."""

from collections import Counter

import numpy as np
import pytest

from pd_core.labelling.selection import Array, Candidates, Method, select

METHODS = [method for method in Method if method is not Method.RANDOM]


def candidates(
    *, count: int = 60, classes: int = 4, labelled: int = 0, seed: int = 0
) -> Candidates:
    """Make candidates with random features, whose classes are in turn the predicted ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), np.arange(count) % classes] += 6 * rng.random(count) + 3
    powers = np.exp(logits)
    features = rng.normal(size=(count + labelled, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Candidates(
        powers / powers.sum(axis=1, keepdims=True), features[:count], features[count:],
        np.zeros(classes, dtype=np.int64),
    )  # fmt: skip


def chosen(given: Candidates, method: Method, count: int, seed: int = 1) -> list[int]:
    return select(given, method, count, np.random.default_rng(seed))


def entropy(given: Candidates) -> Array:
    p = given.probabilities
    return np.asarray(-(p * np.log(p)).sum(axis=1))


@pytest.mark.parametrize("method", Method)
def test_the_same_seed_chooses_the_same_images_and_each_once(method: Method) -> None:
    given = candidates()
    rows = chosen(given, method, 20)
    assert rows == chosen(given, method, 20)
    assert len(set(rows)) == 20


@pytest.mark.parametrize("method", [Method.BADGE, Method.RANDOM])
def test_another_seed_draws_other_images(method: Method) -> None:
    given = candidates()
    assert set(chosen(given, method, 10)) != set(chosen(given, method, 10, seed=2))


@pytest.mark.parametrize("method", METHODS)
def test_predicted_classes_are_balanced_with_the_labels_that_are_there(method: Method) -> None:
    given = candidates()
    given.counts[:] = (0, 3, 0, 1)
    rows = chosen(given, method, 12)
    assert Counter(given.predicted[rows].tolist()) == {0: 4, 1: 1, 2: 4, 3: 3}


@pytest.mark.parametrize("method", METHODS)
def test_a_class_without_further_candidates_leaves_its_share_to_the_others(method: Method) -> None:
    given = candidates()
    rare = np.flatnonzero(given.predicted == 2)[2:]
    given.probabilities[rare] = np.roll(given.probabilities[rare], 1, axis=1)  # to class 3
    rows = chosen(given, method, 20)
    assert Counter(given.predicted[rows].tolist()) == {0: 6, 1: 6, 2: 2, 3: 6}


@pytest.mark.parametrize("method", METHODS)
def test_of_copies_only_one_is_chosen_and_none_of_a_labelled_image(method: Method) -> None:
    given = candidates(labelled=1)
    for rows in ([0, 4, 8], [1, 5]):
        given.features[rows] = given.features[rows[0]]
        given.probabilities[rows] = given.probabilities[rows[0]]
    given.features[2] = given.labelled[0]
    rows = chosen(given, method, 60)
    assert len(rows) == len(set(rows)) == 60 - 2 - 1 - 1
    assert 2 not in rows
    assert len({0, 4, 8} & set(rows)) == len({1, 5} & set(rows)) == 1


def test_entropy_chooses_the_least_certain_of_each_predicted_class() -> None:
    given = candidates()
    rows = chosen(given, Method.ENTROPY, 8)
    for label in range(4):
        members = np.flatnonzero(given.predicted == label)
        least = members[np.argsort(-entropy(given)[members])[:2]]
        assert {*least} <= {*rows}


def test_badge_prefers_uncertain_images() -> None:
    given = candidates()
    drawn = [row for seed in range(20) for row in chosen(given, Method.BADGE, 8, seed)]
    assert entropy(given)[drawn].mean() > 1.3 * entropy(given).mean()


@pytest.mark.parametrize("method", [Method.BADGE, Method.CORESET])
def test_badge_and_coreset_spread_over_groups_of_similar_images(method: Method) -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:5].repeat([40, 5, 5, 5, 5], axis=0)
    features = centres + rng.normal(size=centres.shape) / 15
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    given = Candidates(
        np.full((60, 2), (0.6, 0.4)), features, features[:0], np.zeros(2, dtype=np.int64)
    )
    groups = {int(features[row].argmax()) for row in chosen(given, method, 5)}
    assert groups == {0, 1, 2, 3, 4}


def test_coreset_keeps_away_from_labelled_images() -> None:
    given = candidates(labelled=20)
    nearest = (given.features @ given.labelled.T).max(axis=1)
    (first,) = chosen(given, Method.CORESET, 1)
    same = np.flatnonzero(given.predicted == given.predicted[first])
    assert nearest[first] == nearest[same].min()


def test_random_choice_is_of_all_candidates() -> None:
    given = candidates()
    given.features[:] = given.features[0]
    assert sorted(chosen(given, Method.RANDOM, 60)) == list(range(60))
