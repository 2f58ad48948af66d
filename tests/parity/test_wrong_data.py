"""The parity checks fail for plausible mistakes in lists of images and in pixels."""

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
from variants import Patch, cases, patch

from pd_core.data.catalog import prepare
from pd_core.data.catalog.catalogue import PrepareConfig
from pd_core.data.loading import images as transforms
from pd_core.data.loading import splits
from pd_core.data.loading.images import Transform
from pd_core.data.loading.splits import Item, Items, Protocol, Splits
from pd_core.models.portable.preprocess import Preprocess

few_shot, few_shot_split = splits.few_shot, splits.few_shot_split
train_val, train_val_test = splits.train_val, splits.train_val_test


def by_label(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.label)


def of_each_class(items: Iterable[Item], draw: Callable[[list[Item]], list[Item]]) -> Items:
    return tuple(item for members in splits._by_class(items).values() for item in draw(members))


def few_shot_by_label(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    return few_shot(by_label(items), shots, rng)


def few_shot_with_replacement(items: Iterable[Item], shots: int, rng: random.Random) -> Items:
    return of_each_class(
        items,
        lambda members: rng.choices(members, k=shots) if len(members) >= shots else members,
    )


def few_shot_that_shuffles_small_classes(
    items: Iterable[Item], shots: int, rng: random.Random
) -> Items:
    return of_each_class(items, lambda members: rng.sample(members, min(shots, len(members))))


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


def every_other_class(items: Iterable[Item], _: int) -> tuple[Items, Items]:
    even, odd = (tuple(item for item in items if item.label % 2 == rest) for rest in (0, 1))
    return even, odd


def validation_from_the_end(
    items: Iterable[Item], rng: random.Random, *, val_fraction: float = 0.2
) -> tuple[Items, Items]:
    train: list[Item] = []
    val: list[Item] = []
    for members in splits._by_class(items).values():
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


FEW_SHOT = {
    "classes drawn by label": few_shot_by_label,
    "shots drawn with replacement": few_shot_with_replacement,
    "random numbers spent on small classes": few_shot_that_shuffles_small_classes,
}
LISTS = {
    "few_shot_lists": {
        **{name: patch(splits, "few_shot", wrong) for name, wrong in FEW_SHOT.items()},
        "validation drawn first": patch(splits, "few_shot_split", validation_first),
        "as many for validation": patch(splits, "few_shot_split", as_many_for_validation),
    },
    "base_and_novel_lists": {
        "novel left out before the draw": patch(splits, "few_shot_split", base_before_the_draw),
        "every other class is base": patch(splits, "base_and_novel", every_other_class),
        "one base class more": patch(splits, "base_count", lambda classes: classes // 2 + 1),
    },
    "distillation_lists": {"few images": patch(prepare, "run", on_few_images)},
    "validation_cuts": {
        "validation from the end": patch(splits, "train_val", validation_from_the_end),
        "validation cut by label": patch(splits, "train_val", cut_by_label),
        "few shots by label": patch(splits, "few_shot", few_shot_by_label),
    },
    "three_way_cuts": {
        "a larger validation list": patch(splits, "train_val_test", larger_validation),
        "all classes shuffled at once": patch(splits, "train_val_test", shuffled_once),
    },
}


BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR


def cropped(model: Preprocess, *steps: Callable[[Any], Any]) -> Transform:
    return Transform((model,), lambda image: [Compose(steps)(image)])


def fixed(model: Preprocess, *steps: Callable[[Any], Any]) -> Transform:
    return cropped(model, *steps, CenterCrop(model.size))


def flipped(model: Preprocess, crop: RandomResizedCrop) -> Transform:
    return cropped(model, crop, RandomHorizontalFlip())


def unnormalised(_model: Preprocess, pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def of_imagenet(model: Preprocess, pixels: Tensor) -> Tensor:
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    deviation = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    return (unnormalised(model, pixels) - mean) / deviation


FIXED: dict[str, Callable[[Preprocess], Transform]] = {
    "bilinear": lambda model: fixed(model, Resize(model.size, BILINEAR)),
    "nearest": lambda model: fixed(model, Resize(model.size, InterpolationMode.NEAREST)),
    "no centre crop": lambda model: fixed(model, Resize((model.size, model.size), BICUBIC)),
    "a margin around the crop": lambda model: fixed(model, Resize(model.size * 8 // 7, BICUBIC)),
}
RANDOM: dict[str, Callable[..., Transform]] = {
    "bilinear views": lambda model, scale, **_: flipped(
        model, RandomResizedCrop(model.size, scale, interpolation=BILINEAR)
    ),
    "large views only": lambda model, **_: flipped(
        model, RandomResizedCrop(model.size, (0.5, 1.0), interpolation=BICUBIC)
    ),
    "flipped before the crop": lambda model, scale, **_: cropped(
        model,
        RandomHorizontalFlip(),
        RandomResizedCrop(model.size, scale, interpolation=BICUBIC),
    ),
    "never flipped": lambda model, scale, **_: cropped(
        model, RandomResizedCrop(model.size, scale, interpolation=BICUBIC)
    ),
    "no random crop": lambda model, **_: transforms.eval_transform(model),
}
PIXELS = {
    "evaluation_pixels": {
        **{name: patch(transforms, "eval_transform", wrong) for name, wrong in FIXED.items()},
        "no normalisation": patch(Preprocess, "normalise", unnormalised),
        "ImageNet's normalisation": patch(Preprocess, "normalise", of_imagenet),
    },
    "training_pixels": {
        **{name: patch(transforms, "train_transform", wrong) for name, wrong in RANDOM.items()},
        "views without normalisation": patch(Preprocess, "normalise", unnormalised),
    },
}


@cases(LISTS)
def test_a_wrong_list_is_noticed(part: str, wrong: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads((traces.OWN / "splits.json").read_text())
    assert split_checks.ALL[part](recorded)

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        split_checks.ALL[part](recorded)


@cases(PIXELS)
def test_wrong_pixels_are_noticed(part: str, wrong: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = load_file(traces.OWN / "transforms" / "transforms.safetensors")
    assert pixel_checks.ALL[part](recorded)

    wrong(monkeypatch)

    with pytest.raises(AssertionError):
        pixel_checks.ALL[part](recorded)
