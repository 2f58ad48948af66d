"""Few-shot lists, splits and pixels are those of the original, random number by random number."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import traces
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pd_core.data.images import eval_transform, train_transform
from pd_core.data.splits import Item, base_and_novel, base_count, few_shot, train_val

SPLITS = [path for root in traces.folders() if (path := root / "splits.json").is_file()]
TRANSFORMS = [
    path
    for root in traces.folders()
    if (path := root / "transforms" / "transforms.safetensors").is_file()
]
SPLIT_FILES = pytest.mark.parametrize("file", SPLITS, ids=lambda file: file.parent.name)
TRANSFORM_FILES = pytest.mark.parametrize("file", TRANSFORMS, ids=lambda f: f.parent.parent.name)


def items(rows: list[list[Any]]) -> tuple[Item, ...]:
    return tuple(Item(path, label, name) for path, label, name in rows)


def paths(drawn: tuple[Item, ...]) -> list[str]:
    return [item.path for item in drawn]


def rows(drawn: tuple[Item, ...], first: int = 0) -> list[list[Any]]:
    return [[item.path, item.label - first, item.name] for item in drawn]


@SPLIT_FILES
def test_few_shot_draws_are_those_of_the_original(file: Path) -> None:
    recorded = json.loads(file.read_text())
    train, val = items(recorded["input"]["train"]), items(recorded["input"]["val"])

    for case, expected in recorded["fewshot"].items():
        seed, shots = (int("".join(filter(str.isdigit, part))) for part in case.split("_"))
        rng = random.Random(seed)
        assert paths(few_shot(train, shots, rng)) == expected["train"], case
        assert paths(few_shot(val, min(shots, 4), rng)) == expected["val_fewshot"], case
        assert rng.random() == expected["next_random_random_after"], case


@SPLIT_FILES
def test_drawing_the_classes_in_another_order_would_be_noticed(file: Path) -> None:
    recorded = json.loads(file.read_text())
    by_label = sorted(items(recorded["input"]["train"]), key=lambda item: item.label)

    for case, expected in recorded["fewshot"].items():
        seed, shots = (int("".join(filter(str.isdigit, part))) for part in case.split("_"))
        wrong = few_shot(by_label, shots, random.Random(seed))
        assert sorted(paths(wrong)) != sorted(expected["train"]), case


@SPLIT_FILES
def test_base_and_novel_lists_are_those_of_the_original(file: Path) -> None:
    recorded = json.loads(file.read_text())
    train, test = items(recorded["input"]["train"]), items(recorded["input"]["test"])
    count = len({item.label for item in train})
    first = base_count(count)

    for case, expected in recorded["fewshot"].items():
        seed, shots = (int("".join(filter(str.isdigit, part))) for part in case.split("_"))
        base, novel = base_and_novel(few_shot(train, shots, random.Random(seed)), count)
        assert rows(base) == expected["base"]["train_x"], case
        assert rows(novel, first) == expected["new"]["train_x"], case
        base, novel = base_and_novel(test, count)
        assert rows(base) == expected["base"]["test"], case
        assert rows(novel, first) == expected["new"]["test"], case


@SPLIT_FILES
def test_the_unlabelled_images_are_the_whole_train_split_in_its_order(file: Path) -> None:
    recorded = json.loads(file.read_text())

    assert recorded["promptkd_base2novel_shots0"]["train_x"] == recorded["input"]["train"]


@SPLIT_FILES
def test_the_validation_cut_is_that_of_the_original(file: Path) -> None:
    recorded = json.loads(file.read_text())["fresh_no_split_file"]
    expected = recorded["seed1"]

    train, val = train_val(items(recorded["trainval_input"]), random.Random(1))

    assert rows(train) == expected["train"]
    assert rows(val) == expected["val"]


def compare(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=1e-6)


@TRANSFORM_FILES
def test_pixels_for_evaluation_are_those_of_the_original(file: Path) -> None:
    tensors = load_file(file)
    cases = [key.split("/") for key in tensors if key.startswith("test")]

    for kind, name in cases:
        image = Image.fromarray(tensors[f"input_u8/{name}"].numpy())
        size = int(kind.removeprefix("test"))
        compare(eval_transform(size)(image), tensors[f"{kind}/{name}"])
    assert cases


@TRANSFORM_FILES
def test_pixels_for_training_are_those_of_the_original(file: Path) -> None:
    tensors = load_file(file)
    kind = next(key.split("/")[0] for key in tensors if key.startswith("train"))
    size, seed = (int(part) for part in kind.removeprefix("train").split("_torchseed"))
    transform = train_transform(size, scale=(0.08, 1.0), flip=True)

    for name in {key.split("/")[1] for key in tensors if key.startswith(kind)}:
        image = Image.fromarray(tensors[f"input_u8/{name}"].numpy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number in range(2):
                compare(transform(image), tensors[f"{kind}/{name}/{number}"])
