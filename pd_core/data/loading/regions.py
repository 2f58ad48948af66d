"""Random regions of images, and views that are computed from them on the device of the training.

A worker decodes an image and draws its region; the pixels go to the device as they are, and are
resized and mirrored there. Pillow resizes in two passes, the width first, and rounds between them;
so does this module, so that a pixel differs from Pillow's by at most 2 of 255.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.precision import to_device

_RATIO = (3 / 4, 4 / 3)  # of width and height of a crop, as in torchvision and the paper's code
_MIRRORED = 0.5  # of the views


class Region(NamedTuple):
    """Region of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def random_region(image: Image.Image, *, scale: tuple[float, float], flip: bool) -> Region:
    """Draw a region by torch's global generator, as torchvision's transforms do.

    Args:
        image: Of any mode; its size is used.
        scale: Smallest and largest area, as fractions of the image.
        flip: If True, half of the regions are mirrored.
    """
    top, left, height, width = RandomResizedCrop.get_params(image, list(scale), list(_RATIO))
    return Region(top, left, height, width, flip and bool(torch.rand(1) < _MIRRORED))


@dataclass(frozen=True)
class RegionTransform:
    """Random transform for training whose views are computed on the device."""

    models: tuple[Preprocess, ...]
    scale: tuple[float, float]
    flip: bool

    def arrays(self, image: Image.Image) -> list[NDArray[np.generic]]:
        """Return the pixels (h, w, 3) of a random region of an RGB image, and if it is mirrored."""
        top, left, height, width, mirrored = random_region(image, scale=self.scale, flip=self.flip)
        pixels = np.asarray(image)[top : top + height, left : left + width]
        return [pixels, np.array(mirrored)]

    def pack(self, images: Sequence[Sequence[NDArray[np.generic]]]) -> list[NDArray[np.generic]]:
        """Unite the arrays of B images: pixels in a row, sizes (B, 2), mirrored (B,)."""
        regions = [region for region, _ in images]
        return [
            np.concatenate([np.empty(0, np.uint8), *(region.ravel() for region in regions)]),
            np.array([region.shape[:2] for region in regions], np.int64).reshape(-1, 2),
            np.array([mirrored for _, mirrored in images], np.bool_),
        ]

    def views(self, packed: Sequence[NDArray[np.generic]]) -> Regions:
        """Return the views of a batch."""
        pixels, sizes, mirrored = map(torch.from_numpy, packed)
        return Regions(self.models, pixels, tuple(map(tuple, sizes.tolist())), mirrored)


@dataclass(frozen=True)
class Regions(Mapping[Preprocess, Tensor]):
    """Views of a batch for each model, computed from regions whenever they are read.

    Attributes:
        models: Preprocessing of each.
        pixels: Those of all regions in a row, uint8.
        sizes: Height and width of each region.
        mirrored: Which regions are mirrored, (B,).
    """

    models: tuple[Preprocess, ...]
    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    mirrored: Tensor

    def __getitem__(self, model: Preprocess) -> Tensor:
        """Return the views for a model: (B, 3, S, S), fp32, where the regions are."""
        if model not in self.models:
            raise KeyError(model)
        regions = torch.split(self.pixels, [3 * height * width for height, width in self.sizes])
        views = self.pixels.new_empty(len(self.sizes), 3, model.size, model.size)
        for view, region, (height, width) in zip(views, regions, self.sizes, strict=True):
            view.copy_(_resized(region.view(height, width, 3).permute(2, 0, 1), model))
        mirrored = self.mirrored.view(-1, 1, 1, 1)
        views = torch.where(mirrored, views.flip(-1), views)
        return model.normalise(views.permute(0, 2, 3, 1))

    def __iter__(self) -> Iterator[Preprocess]:
        """Iterate over the models."""
        return iter(self.models)

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.models)

    def to(self, device: torch.device) -> dict[Preprocess, Tensor]:
        """Move the regions to a device, and compute the views there."""
        pixels, mirrored = (to_device(each, device) for each in (self.pixels, self.mirrored))
        return {**Regions(self.models, pixels, self.sizes, mirrored)}


def _resized(region: Tensor, model: Preprocess) -> Tensor:
    """Resize a region (3, h, w) to a model's size, (3, S, S)."""
    values = region[None].float()
    for size in ((region.shape[1], model.size), (model.size, model.size)):
        values = interpolate(values, size, mode=model.interpolation, antialias=True)
        values = values.clamp_(0, 255).round_()
    return values[0]
