import json
import random
from pathlib import Path
from typing import Any

import pytest

from pd_core.core.errors import BadData, BadParams
from pd_core.data.loading.splits import (
    Item,
    Items,
    Protocol,
    Splits,
    base_and_novel,
    base_count,
    clean_path,
    few_shot,
    few_shot_split,
    is_picture,
    train_val,
    train_val_test,
)

RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "data" / "splits.json").read_text())
FEW_SHOT = sorted(RECORDED["fewshot"])


def items(rows: list[Any]) -> Items:
    return tuple(Item(path, label, name) for path, label, name in rows)


def rows(listed: Items) -> list[list[Any]]:
    return [[item.path, item.label, item.name] for item in listed]


def paths(listed: Items) -> list[str]:
    return [item.path for item in listed]


def made(counts: dict[int, int]) -> Items:
    return tuple(
        Item(f"{label}/{number}.png", label, f"class {label}")
        for label, count in counts.items()
        for number in range(count)
    )


ORIGINAL = Splits(*(items(RECORDED["input"][name]) for name in ("train", "val", "test")))


@pytest.mark.parametrize("case", FEW_SHOT)
def test_few_shot_lists_and_random_numbers_are_those_of_the_published_code(case: str) -> None:
    seed, shots = (int("".join(filter(str.isdigit, part))) for part in case.split("_"))
    recorded = RECORDED["fewshot"][case]
    rng = random.Random(seed)

    train, val = few_shot_split(
        ORIGINAL, shots=shots, val_shots=4, protocol=Protocol.ALL_CLASSES, rng=rng
    )

    assert paths(train) == recorded["train"]
    assert paths(val) == recorded["val_fewshot"]
    assert rng.random() == recorded["next_random_random_after"]


@pytest.mark.parametrize("case", FEW_SHOT)
def test_base_and_novel_lists_are_those_of_the_published_code(case: str) -> None:
    seed, shots = (int("".join(filter(str.isdigit, part))) for part in case.split("_"))
    recorded = RECORDED["fewshot"][case]
    drawn = few_shot(ORIGINAL.train, shots, random.Random(seed))
    first_novel = base_count(12)

    base, novel = base_and_novel(drawn, 12)
    test_base, test_novel = base_and_novel(ORIGINAL.test, 12)

    assert rows(base) == recorded["base"]["train_x"]
    assert rows(test_base) == recorded["base"]["test"]
    assert [[p, label - first_novel, n] for p, label, n in rows(novel)] == recorded["new"][
        "train_x"
    ]
    assert [[p, label - first_novel, n] for p, label, n in rows(test_novel)] == (
        recorded["new"]["test"]
    )
    assert list(ORIGINAL.class_names[:first_novel]) == recorded["base"]["classnames"]
    assert list(ORIGINAL.class_names[first_novel:]) == recorded["new"]["classnames"]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_teacher_gets_the_published_base_images_and_no_novel_ones(seed: int) -> None:
    train, val = few_shot_split(
        ORIGINAL,
        shots=16,
        val_shots=4,
        protocol=Protocol.BASE_TO_NOVEL,
        rng=random.Random(seed),
    )

    assert rows(train) == RECORDED["fewshot"][f"seed{seed}_shots16"]["base"]["train_x"]
    assert max(item.label for item in (*train, *val)) == base_count(12) - 1


def test_validation_cut_off_the_train_list_is_that_of_the_published_code() -> None:
    recorded = RECORDED["fresh_no_split_file"]
    rng = random.Random(1)

    train, val = train_val(items(recorded["trainval_input"]), rng)

    assert rows(train) == recorded["seed1"]["train"]
    assert rows(val) == recorded["seed1"]["val"]
    assert paths(few_shot(train, 4, rng)) == recorded["seed1"]["fewshot4_train"]
    assert paths(few_shot(val, 4, rng)) == recorded["seed1"]["fewshot4_val"]
    assert rng.random() == recorded["seed1"]["next_random_random_after"]


@pytest.mark.parametrize("order", ["plain", "listdir_sorted"])
def test_three_way_cut_is_that_of_the_published_code(order: str) -> None:
    seen = RECORDED["dtd_read_and_split_seed1_plain"]["listdir_order_as_seen"]
    recorded = RECORDED[f"dtd_read_and_split_seed1_{order}"]
    listed = tuple(
        Item(path, label, name)
        for label, name in enumerate(sorted(seen))
        for path in (seen[name] if order == "plain" else sorted(seen[name]))
    )
    rng = random.Random(1)

    splits = train_val_test(listed, rng)

    assert rows(splits.train) == recorded["train"]
    assert rows(splits.val) == recorded["val"]
    assert rows(splits.test) == recorded["test"]
    assert rng.random() == recorded["next_random_random_after"]


def test_a_class_smaller_than_the_shots_takes_no_random_number() -> None:
    rng = random.Random(5)

    few_shot(made({0: 3, 1: 2}), 4, rng)

    assert rng.random() == random.Random(5).random()


def test_more_shots_than_any_class_has_are_refused_with_the_largest_valid_number() -> None:
    splits = Splits(made({0: 3, 1: 5}), made({0: 1, 1: 1}), ())

    with pytest.raises(BadParams, match="shots = 6: the largest class has 5 .* from 1 to 5"):
        few_shot_split(
            splits,
            shots=6,
            val_shots=4,
            protocol=Protocol.ALL_CLASSES,
            rng=random.Random(1),
        )


def test_as_many_shots_as_the_largest_class_has_are_allowed() -> None:
    splits = Splits(made({0: 3, 1: 5}), made({0: 1, 1: 1}), ())

    train, _ = few_shot_split(
        splits, shots=5, val_shots=4, protocol=Protocol.ALL_CLASSES, rng=random.Random(1)
    )

    assert sorted(paths(train)) == sorted(paths(splits.train))


def test_an_empty_train_list_is_refused() -> None:
    with pytest.raises(BadParams, match="shots = 1: the largest class has 0 train images"):
        few_shot_split(
            Splits((), (), ()),
            shots=1,
            val_shots=1,
            protocol=Protocol.ALL_CLASSES,
            rng=random.Random(1),
        )


def test_no_shots_are_refused() -> None:
    with pytest.raises(BadParams, match="shots = 0"):
        few_shot(made({0: 3}), 0, random.Random(1))


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_for_validation_is_named(count: int) -> None:
    with pytest.raises(
        BadData, match=f"^class 'class 1' has {count} images, too few to keep 20% for validation"
    ):
        train_val(made({0: 10, 1: count}), random.Random(1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_too_small_for_three_lists_is_named(count: int) -> None:
    with pytest.raises(
        BadData,
        match=f"^class 'class 1' has {count} images, too few for train, validation and test: add",
    ):
        train_val_test(made({0: 10, 1: count}), random.Random(1))


def test_no_list_of_the_three_may_be_without_a_class() -> None:
    for train_fraction, val_fraction in ((0.1, 0.5), (0.5, 0.1), (0.5, 0.5)):
        with pytest.raises(BadData, match="'class 0' has 4 images, too few"):
            train_val_test(
                made({0: 4}),
                random.Random(1),
                train_fraction=train_fraction,
                val_fraction=val_fraction,
            )


def test_a_label_with_two_names_is_refused() -> None:
    splits = Splits((Item("a", 0, "ant"),), (Item("b", 0, "bee"),), ())

    with pytest.raises(BadData, match="label 0 has two names, 'ant' and 'bee'"):
        _ = splits.class_names


def test_images_are_known_by_their_suffix_and_hidden_files_are_none() -> None:
    names = ["a.JPG", "b.png", ".c.png", "d.txt", "png"]
    assert [name for name in names if is_picture(name)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize(
    ("path", "clean"),
    [("a/b.png", "a/b.png"), ("./a//b", "a/b"), (".", None), ("..", None)],
)
def test_paths_are_cleaned_and_those_that_name_no_file_below_are_refused(
    path: str, clean: str | None
) -> None:
    assert clean_path(path) == clean
