"""What holds of every split: nothing appears twice, nothing is lost, one seed is one draw."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_core.core.errors import BadData
from pd_core.data.loading.splits import (
    Item,
    Items,
    Protocol,
    Splits,
    base_and_novel,
    base_count,
    check_paths_disjoint,
    few_shot,
    few_shot_split,
    train_val,
    train_val_test,
)

SEEDS = st.integers(0, 2**32)
examples = settings(max_examples=40)


def listed(draw: st.DrawFn, name: str, counts: Iterable[int]) -> Items:
    """Make a list with so many images of each class, in any order."""
    items = [
        Item(f"{name}/{label}/{number}.png", label, f"class {label}")
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    random.Random(draw(SEEDS)).shuffle(items)
    return tuple(items)


@st.composite
def lists(draw: st.DrawFn, *, least: int = 1) -> Items:
    return listed(draw, "train", draw(st.lists(st.integers(least, 9), min_size=1, max_size=6)))


@st.composite
def data_sets(draw: st.DrawFn) -> Splits:
    """Draw three lists of the same classes; a class may be in the train list only."""
    classes = draw(st.integers(1, 6))
    per_class = st.lists(st.integers(0, 5), min_size=classes, max_size=classes)
    train = listed(draw, "train", [count + 1 for count in draw(per_class)])
    return Splits(
        train, listed(draw, "val", draw(per_class)), listed(draw, "test", draw(per_class))
    )


def sizes(items: Items) -> Counter[int]:
    return Counter(item.label for item in items)


def first_seen(items: Items) -> list[int]:
    return list(dict.fromkeys(item.label for item in items))


@examples
@given(items=lists(), shots=st.integers(1, 12), seed=SEEDS)
def test_few_shot_draws_distinct_images_class_by_class_and_all_of_small_classes(
    items: Items, shots: int, seed: int
) -> None:
    drawn = few_shot(items, shots, random.Random(seed))

    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(items)
    assert sizes(drawn) == {label: min(count, shots) for label, count in sizes(items).items()}
    labels = [item.label for item in drawn]
    assert labels == [label for label in first_seen(items) for _ in range(sizes(drawn)[label])]


@examples
@given(splits=data_sets(), protocol=st.sampled_from(Protocol), seed=SEEDS, other=SEEDS)
def test_one_seed_gives_one_draw_whatever_the_global_random_state_is(
    splits: Splits, protocol: Protocol, seed: int, other: int
) -> None:
    def draw() -> tuple[Items, Items]:
        rng = random.Random(seed)
        return few_shot_split(splits, shots=1, val_shots=1, protocol=protocol, rng=rng)

    first = draw()
    before = random.getstate()
    try:
        random.seed(other)
        unmoved = random.getstate()
        assert draw() == first
        assert random.getstate() == unmoved
    finally:
        random.setstate(before)


@examples
@given(splits=data_sets(), val_shots=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_the_base_images_of_a_seed_are_those_of_the_same_seed_with_all_classes(
    splits: Splits, val_shots: int, seed: int, data: st.DataObject
) -> None:
    shots = data.draw(st.integers(1, max(sizes(splits.train).values())))

    def draw(protocol: Protocol) -> tuple[Items, Items]:
        return few_shot_split(
            splits, shots=shots, val_shots=val_shots, protocol=protocol, rng=random.Random(seed)
        )

    classes = len(splits.class_names)
    expected = [base_and_novel(part, classes)[0] for part in draw(Protocol.ALL_CLASSES)]
    assert list(draw(Protocol.BASE_TO_NOVEL)) == expected


@examples
@given(splits=data_sets(), val_shots=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_validation_never_has_more_images_of_a_class_than_it_may(
    splits: Splits, val_shots: int, seed: int, data: st.DataObject
) -> None:
    shots = data.draw(st.integers(1, max(sizes(splits.train).values())))

    train, val = few_shot_split(
        splits,
        shots=shots,
        val_shots=val_shots,
        protocol=Protocol.ALL_CLASSES,
        rng=random.Random(seed),
    )

    most = min(shots, val_shots)
    assert sizes(val) == {label: min(n, most) for label, n in sizes(splits.val).items()}
    assert set(val) <= set(splits.val)
    assert set(train) <= set(splits.train)


@examples
@given(items=lists(), extra=st.integers(0, 3))
def test_base_and_novel_are_the_list_in_two_parts_each_in_its_order(
    items: Items, extra: int
) -> None:
    classes = len(sizes(items)) + extra  # of some there may be no image in this list

    base, novel = base_and_novel(items, classes)

    assert not set(base) & set(novel)
    assert sorted((*base, *novel), key=items.index) == list(items)
    assert all(list(part) == sorted(part, key=items.index) for part in (base, novel))
    assert all(item.label < base_count(classes) for item in base)
    assert all(item.label >= base_count(classes) for item in novel)
    assert base_count(classes) - (classes - base_count(classes)) == classes % 2


@examples
@given(items=lists(least=3), seed=SEEDS, fraction=st.floats(0.2, 0.8))
def test_validation_is_cut_off_train_class_by_class_and_nothing_is_lost(
    items: Items, seed: int, fraction: float
) -> None:
    train, val = train_val(items, random.Random(seed), val_fraction=fraction)

    assert not set(train) & set(val)
    assert len(train) + len(val) == len(items)
    assert set(train) | set(val) == set(items)
    assert sizes(val) == {label: round(n * fraction) for label, n in sizes(items).items()}
    assert first_seen(val) == first_seen(items)


@examples
@given(items=lists(least=4), seed=SEEDS)
def test_a_list_cut_in_three_has_every_image_in_one_part(items: Items, seed: int) -> None:
    splits = train_val_test(items, random.Random(seed), train_fraction=0.5, val_fraction=0.25)

    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    check_paths_disjoint(parts)
    assert Counter((*splits.train, *splits.val, *splits.test)) == Counter(items)
    for label, count in sizes(items).items():
        first = round(count * 0.5)
        second = first + round(count * 0.25)
        expected = {"train": first, "val": second - first, "test": count - second}
        assert {name: sizes(part)[label] for name, part in parts.items()} == expected
    assert all(first_seen(part) == first_seen(items) for part in parts.values())


@examples
@given(splits=data_sets(), data=st.data())
def test_an_image_that_is_put_into_a_second_list_is_found(
    splits: Splits, data: st.DataObject
) -> None:
    lists = {"train": splits.train, "val": splits.val, "test": splits.test}
    check_paths_disjoint(lists)
    shared = data.draw(st.sampled_from(splits.train))
    other = data.draw(st.sampled_from(["val", "test"]))
    place = data.draw(st.integers(0, len(lists[other])))
    lists[other] = (*lists[other][:place], shared, *lists[other][place:])

    with pytest.raises(BadData, match=f"'{shared.path}' is in both train and {other}: "):
        check_paths_disjoint(lists)


@examples
@given(splits=data_sets(), data=st.data())
def test_class_names_are_in_the_order_of_labels_and_a_missing_label_is_named(
    splits: Splits, data: st.DataObject
) -> None:
    assert splits.class_names == tuple(f"class {i}" for i in range(len(splits.class_names)))
    gap = data.draw(st.integers(0, len(splits.class_names) - 1))
    moved = [
        tuple(Item(i.path, i.label + (i.label >= gap), i.name) for i in part)
        for part in (splits.train, splits.val, splits.test)
    ]

    with pytest.raises(BadData, match=f"no image has label {gap}:"):
        _ = Splits(*moved).class_names
