"""Preprocessing of a model's images: resize and crop, then normalisation.

Shapes: B images, S the side of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "squash")


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that a model was trained with, in open_clip's terms.

    Attributes:
        size: S, in pixels.
        mean: per channel, of values from 0 to 1.
        std: standard deviation per channel.
        interpolation: of the resizing, one of `INTERPOLATIONS`.
        resize_mode: `shortest` resizes the shorter side and crops the centre square, `squash`
            resizes both sides.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        """Refuse other values; ValueError names the first."""
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation '{self.interpolation}', not {[*INTERPOLATIONS]}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode '{self.resize_mode}', not {[*RESIZE_MODES]}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Preprocess:
        """Make one of JSON values; raises TypeError or ValueError if they are invalid."""
        listed = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **listed})

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of an image after it is resized, before it is cropped."""
        if self.resize_mode == "squash":
            return self.size, self.size
        longer = int(self.size * max(width, height) / min(width, height))  # like torchvision
        return (self.size, longer) if width <= height else (longer, self.size)

    def crop(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image for evaluation, to (S, S)."""
        width, height = size = self.resized(*image.size)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels (B, S, S, 3): (B, 3, S, S), fp32."""
        values = pixels.permute(0, 3, 1, 2)
        values = values.to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (
            torch.tensor(numbers, device=pixels.device).view(3, 1, 1)
            for numbers in (self.mean, self.std)
        )
        return values.div_(255).sub_(mean).div_(std)
