"""The parity checks notice when lists of images or pixels are made in another way.

Each case replaces one function of ours by a plausible mistake; the check that
is named with it has to fail.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pixel_checks
import pytest
import split_checks
import torch
import traces
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from torchvision.transforms.functional import pil_to_tensor
from variants import Patch, patch

from pd_core.data.catalog import prepare
from pd_core.data.catalog.catalogue import PrepareConfig
from pd_core.data.loading import images as transforms
from pd_core.data.loading import splits
from pd_core.data.loading.images import Transform
from pd_core.data.loading.splits import Item, Items, Protocol, Splits

few_shot, few_shot_split = splits.few_shot, splits.few_shot_split
train_val, train_val_test = splits.train_val, splits.train_val_test


def by_label(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.label)


def few_shot_by_label(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    return few_shot(by_label(items), shots, rng)


def few_shot_with_replacement(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    drawn: list[Item] = []
    for members in _classes(items):
        drawn += rng.choices(members, k=shots) if len(members) >= shots else members
    return tuple(drawn)


def few_shot_that_shuffles_small_classes(
    items: Iterable[Item], shots: int, rng: random.Random
) -> Items:
    drawn: list[Item] = []
    for members in _classes(items):
        drawn += rng.sample(members, min(shots, len(members)))
    return tuple(drawn)


def _classes(items: Iterable[Item]) -> list[list[Item]]:
    classes: dict[int, list[Item]] = {}
    for item in items:
        classes.setdefault(item.label, []).append(item)
    return list(classes.values())


def validation_first(content: Splits, *, rng: random.Random, **rest: Any) -> tuple[Items, Items]:
    shots = min(rest["shots"], rest["val_shots"])
    val = few_shot(content.val, shots, rng)
    return few_shot(content.train, rest["shots"], rng), val


def as_many_for_validation(content: Splits, **rest: Any) -> tuple[Items, Items]:
    return few_shot_split(content, **(rest | {"val_shots": rest["shots"]}))


def base_before_the_draw(content: Splits, *, protocol: Protocol, **rest: Any) -> Any:
    if protocol is Protocol.BASE_TO_NOVEL:
        classes = len(content.class_names)
        lists = (content.train, content.val, content.test)
        content = Splits(*(splits.base_and_novel(items, classes)[0] for items in lists))
    return few_shot_split(content, protocol=Protocol.ALL_CLASSES, **rest)


def every_other_class(items: Iterable[Item], num_classes: int) -> tuple[Items, Items]:
    del num_classes
    items = tuple(items)
    return (
        tuple(item for item in items if item.label % 2 == 0),
        tuple(item for item in items if item.label % 2),
    )


def one_base_class_more(classes: int) -> int:
    return classes // 2 + 1


def validation_from_the_end(
    items: Iterable[Item], rng: random.Random, *, val_fraction: float = 0.2
) -> tuple[Items, Items]:
    train: list[Item] = []
    val: list[Item] = []
    for members in _classes(items):
        rng.shuffle(members)
        count = len(members) - round(len(members) * val_fraction)
        train += members[:count]
        val += members[count:]
    return tuple(train), tuple(val)


def cut_by_label(items: Iterable[Item], rng: random.Random, **rest: Any) -> tuple[Items, Items]:
    return train_val(by_label(items), rng, **rest)


def larger_validation(items: Iterable[Item], rng: random.Random) -> Splits:
    return train_val_test(items, rng, val_fraction=0.25)


def shuffled_once(items: Iterable[Item], rng: random.Random) -> Splits:
    every = list(items)
    rng.shuffle(every)
    return train_val_test(by_label(every), rng)


run = prepare.run


def on_few_images(dataset: str, out: Path, config: PrepareConfig, **rest: Any) -> None:
    run(dataset, out, config.model_copy(update={"unlabelled_per_class": 4}), **rest)


LISTS: dict[str, tuple[Patch, str]] = {
    "classes drawn by label": (patch(splits, "few_shot", few_shot_by_label), "few_shot_lists"),
    "shots drawn with replacement": (
        patch(splits, "few_shot", few_shot_with_replacement),
        "few_shot_lists",
    ),
    "random numbers spent on small classes": (
        patch(splits, "few_shot", few_shot_that_shuffles_small_classes),
        "few_shot_lists",
    ),
    "validation drawn before training": (
        patch(splits, "few_shot_split", validation_first),
        "few_shot_lists",
    ),
    "as many shots for validation": (
        patch(splits, "few_shot_split", as_many_for_validation),
        "few_shot_lists",
    ),
    "novel classes left out before the draw": (
        patch(splits, "few_shot_split", base_before_the_draw),
        "base_and_novel_lists",
    ),
    "every other class is base": (
        patch(splits, "base_and_novel", every_other_class),
        "base_and_novel_lists",
    ),
    "one base class too many": (
        patch(splits, "base_count", one_base_class_more),
        "base_and_novel_lists",
    ),
    "distillation on few images": (
        patch(prepare, "run", on_few_images),
        "distillation_lists",
    ),
    "validation cut from the end": (
        patch(splits, "train_val", validation_from_the_end),
        "validation_cuts",
    ),
    "validation cut by label": (patch(splits, "train_val", cut_by_label), "validation_cuts"),
    "few shots by label after the cut": (
        patch(splits, "few_shot", few_shot_by_label),
        "validation_cuts",
    ),
    "a larger validation list": (
        patch(splits, "train_val_test", larger_validation),
        "three_way_cuts",
    ),
    "all classes shuffled at once": (
        patch(splits, "train_val_test", shuffled_once),
        "three_way_cuts",
    ),
}


def fixed(size: int, *steps: Callable[[Any], Any]) -> Transform:
    return Transform(size, Compose(list(steps)))


def bilinear(size: int) -> Transform:
    return fixed(size, Resize(size, interpolation=InterpolationMode.BILINEAR), CenterCrop(size))


def nearest(size: int) -> Transform:
    return fixed(size, Resize(size, interpolation=InterpolationMode.NEAREST), CenterCrop(size))


def squeezed(size: int) -> Transform:
    return fixed(size, Resize((size, size), interpolation=InterpolationMode.BICUBIC))


def larger_before_the_crop(size: int) -> Transform:
    resize = Resize(size * 8 // 7, interpolation=InterpolationMode.BICUBIC)
    return fixed(size, resize, CenterCrop(size))


def random_crop(size: int, *, flip_first: bool = False, **rest: Any) -> Transform:
    crop = RandomResizedCrop(size, **({"interpolation": InterpolationMode.BICUBIC} | rest))
    flip = RandomHorizontalFlip()
    return fixed(size, flip, crop) if flip_first else fixed(size, crop, flip)


def bilinear_views(size: int, *, scale: tuple[float, float], **_: Any) -> Transform:
    return random_crop(size, scale=scale, interpolation=InterpolationMode.BILINEAR)


def large_views(size: int, **_: Any) -> Transform:
    return random_crop(size, scale=(0.5, 1.0))


def flipped_first(size: int, *, scale: tuple[float, float], **_: Any) -> Transform:
    return random_crop(size, scale=scale, flip_first=True)


def never_flipped(size: int, *, scale: tuple[float, float], **_: Any) -> Transform:
    return fixed(
        size, RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    )


def centred(size: int, **_: Any) -> Transform:
    return transforms.eval_transform(size)


def between_zero_and_one(pictures: list[Image.Image]) -> Tensor:
    return images_of(pictures) / 255


def of_imagenet(pictures: list[Image.Image]) -> Tensor:
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    deviation = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    return (images_of(pictures) / 255 - mean) / deviation


def images_of(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([pil_to_tensor(picture) for picture in pictures]).float()


PIXELS: dict[str, tuple[Patch, str]] = {
    "bilinear": (patch(transforms, "eval_transform", bilinear), "evaluation_pixels"),
    "nearest": (patch(transforms, "eval_transform", nearest), "evaluation_pixels"),
    "no centre crop": (patch(transforms, "eval_transform", squeezed), "evaluation_pixels"),
    "a margin around the crop": (
        patch(transforms, "eval_transform", larger_before_the_crop),
        "evaluation_pixels",
    ),
    "no normalisation": (patch(transforms, "normalise", between_zero_and_one), "evaluation_pixels"),
    "ImageNet's normalisation": (patch(transforms, "normalise", of_imagenet), "evaluation_pixels"),
    "bilinear views": (patch(transforms, "train_transform", bilinear_views), "training_pixels"),
    "large views only": (patch(transforms, "train_transform", large_views), "training_pixels"),
    "flipped before the crop": (
        patch(transforms, "train_transform", flipped_first),
        "training_pixels",
    ),
    "never flipped": (patch(transforms, "train_transform", never_flipped), "training_pixels"),
    "no random crop": (patch(transforms, "train_transform", centred), "training_pixels"),
    "views without normalisation": (
        patch(transforms, "normalise", between_zero_and_one),
        "training_pixels",
    ),
}


@pytest.mark.parametrize("variant", LISTS)
def test_a_wrong_list_is_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, part = LISTS[variant]
    recorded = json.loads((traces.OWN / "splits.json").read_text())
    assert split_checks.ALL[part](recorded)

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        split_checks.ALL[part](recorded)


@pytest.mark.parametrize("variant", PIXELS)
def test_wrong_pixels_are_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, part = PIXELS[variant]
    recorded = load_file(traces.OWN / "transforms" / "transforms.safetensors")
    assert pixel_checks.ALL[part](recorded)

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        pixel_checks.ALL[part](recorded)
