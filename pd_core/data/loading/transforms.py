"""From a picture to CLIP's input.

The random transforms draw the numbers that torchvision's own classes draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from pd_core.models.portable.pictures import centre_square
from pd_core.models.portable.pixels import normalised


@dataclass(frozen=True)
class Transform:
    """A picture's way to a tensor: cropping and resizing, then CLIP's normalisation.

    Attributes:
        size: Height and width of the result, pixels.
        crop: From an RGB picture to one of the model's size; may draw from torch's global
            generator.
    """

    size: int
    crop: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the picture as a normalised tensor (3, H, W)."""
        return normalise([self.crop(image)])[0]


def train_transform(size: int, *, scale: tuple[float, float], flip: bool) -> Transform:
    """Make the random transform for training.

    Args:
        size: Height and width of the result, pixels.
        scale: Least and largest area of the crop, as a share of the picture.
        flip: Whether half of the views are mirrored.
    """
    crop = RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    return Transform(size, Compose([crop, RandomHorizontalFlip()]) if flip else crop)


def eval_transform(size: int) -> Transform:
    """Make the fixed transform: shorter side to ``size`` pixels, then the centre square."""
    return Transform(size, partial(centre_square, size=size))


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB pictures of one size and apply CLIP's normalisation: (B, 3, H, W), fp32."""
    return normalised(torch.from_numpy(np.stack([np.asarray(image) for image in images])))
