"""Parity checks of pixels.

Each takes the tensors of a `transforms.safetensors` and returns the number of images compared.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from PIL import Image
from torch import Tensor

from pd_core.data.loading import images as transforms
from pd_core.models.portable.preprocess import Preprocess

Recorded = Mapping[str, Tensor]

TOLERANCE = 1e-6  # absolute; pixels are between -2 and 3


def evaluation_pixels(recorded: Recorded) -> int:
    """The fixed transform: the shorter side resized, the centre cut out."""
    count = 0
    for case, expected in _cases(recorded, r"test(?P<size>\d+)/(?P<name>[^/]+)"):
        transform = transforms.eval_transform(Preprocess(int(case["size"])))
        _compare(transform(_picture(recorded, case["name"])), expected)
        count += 1
    return count


def training_pixels(recorded: Recorded) -> int:
    """The random transform, applied several times after the generator was seeded once."""
    pattern = r"train(?P<size>\d+)_torchseed(?P<seed>\d+)/(?P<name>[^/]+)/(?P<number>\d+)"
    views: dict[tuple[int, int, str], dict[int, Tensor]] = {}
    for case, expected in _cases(recorded, pattern):
        key = int(case["size"]), int(case["seed"]), case["name"]
        views.setdefault(key, {})[int(case["number"])] = expected
    count = 0
    for (size, seed, name), numbered in views.items():
        transform = transforms.train_transform(Preprocess(size), scale=(0.08, 1.0), flip=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number in range(max(numbered) + 1):
                ours = transform(_picture(recorded, name))
                if number in numbered:
                    _compare(ours, numbered[number])
                    count += 1
    return count


Check = Callable[[Recorded], int]

ALL: dict[str, Check] = {check.__name__: check for check in (evaluation_pixels, training_pixels)}

KEYS = {  # start of the keys that each check reads
    "evaluation_pixels": r"test\d+/",
    "training_pixels": r"train\d+_",
}


def _cases(recorded: Recorded, pattern: str) -> Iterator[tuple[dict[str, str], Tensor]]:
    for key, value in recorded.items():
        if match := re.fullmatch(pattern, key):
            yield match.groupdict(), value


def _picture(recorded: Recorded, name: str) -> Image.Image:
    return Image.fromarray(recorded[f"input_u8/{name}"].numpy()).convert("RGB")


def _compare(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=TOLERANCE)
