"""From a picture to CLIP's input.

The random transforms draw the numbers that torchvision's own classes draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained on, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Transform:
    """A picture's way to a tensor: cropping and resizing, then CLIP's normalisation.

    Attributes:
        crop: From an RGB picture to one of the model's size; may draw from torch's global
            generator.
    """

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
    return Transform(Compose([crop, RandomHorizontalFlip()]) if flip else crop)


def eval_transform(size: int) -> Transform:
    """Make the fixed transform: shorter side to ``size`` pixels, then the centre square."""
    resize = Resize(size, interpolation=InterpolationMode.BICUBIC)
    return Transform(Compose([resize, CenterCrop(size)]))


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB pictures of one size and apply CLIP's normalisation: (B, 3, H, W), fp32."""
    return normalised(np.stack([np.asarray(image) for image in images]))


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn pixels (B, H, W, 3) into CLIP's input (B, 3, H, W)."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    values = values.to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    return values.div_(255).sub_(mean).div_(std)
