"""Pre-training pictures: characters turned, coloured, blurred, dirtied."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

PICTURE_SIZE = 32
_MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
_STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


class Augmenter:
    """Turns masters into training pictures; every draw comes from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        """Take the source of all draws."""
        self._generator = generator

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator)

    def _chance(self, n: int, probability: float) -> Tensor:
        """Draw a 0/1 switch a picture: (N, 1, 1, 1)."""
        return (self._uniform(n, 1, 1, 1) < probability).float()

    def __call__(self, masters: Tensor, *, difficulty: float) -> Tensor:
        """Augment a batch.

        Args:
            masters: ink, uint8 (B, M, M).
            difficulty: from 0 (black on white, upright) to 1; each picture draws its own below it.

        Returns:
            Normalised pictures, float32 (B, 3, ``PICTURE_SIZE``, ``PICTURE_SIZE``).
        """
        strength = difficulty * self._uniform(len(masters), 1, 1, 1).sqrt()
        ink = self._pose(masters[:, None].float() / 255, strength.flatten())
        ink = ink + strength * (self._strokes(ink) - ink)
        painted = self._dirt(self._paint(ink))
        picture = (1 - ink) + strength * (painted - (1 - ink))
        return (picture.clamp(0, 1) - _MEAN) / _STD

    def _pose(self, ink: Tensor, strength: Tensor) -> Tensor:
        n = len(ink)
        angle = strength * self._uniform(n, low=-0.3, high=0.3)
        zoom = 1 / (1 + strength * self._uniform(n, low=-0.25, high=0.4))
        aspect = 1 + strength * self._uniform(n, low=-0.2, high=0.25)
        shear = strength * self._uniform(n, low=-0.2, high=0.2)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = strength[:, None] * self._uniform(n, 2, low=-0.15, high=0.15)
        top = torch.stack([cos * aspect, cos * shear - sin, shift[:, 0]], dim=1)
        bottom = torch.stack([sin * aspect, sin * shear + cos, shift[:, 1]], dim=1)
        size = [n, 1, PICTURE_SIZE, PICTURE_SIZE]
        grid = F.affine_grid(torch.stack([top, bottom], dim=1), size, align_corners=False)
        return F.grid_sample(ink, grid, mode="bilinear", align_corners=False)

    def _strokes(self, ink: Tensor) -> Tensor:
        """Vary the strokes: thicker, thinner, softer, broken up."""
        n = len(ink)
        thick = F.max_pool2d(ink, 3, 1, 1)
        thin = -F.max_pool2d(-ink, 3, 1, 1)
        amount = self._uniform(n, 1, 1, 1)
        ink = ink + self._chance(n, 0.2) * amount * (thick - ink)
        ink = ink + self._chance(n, 0.15) * 0.6 * amount * (thin - ink)
        soft = F.avg_pool2d(F.avg_pool2d(ink, 3, 1, 1), 3, 1, 1)
        ink = ink + self._chance(n, 0.4) * self._uniform(n, 1, 1, 1) * (soft - ink)
        crumbs = (self._uniform(*ink.shape) < self._uniform(n, 1, 1, 1, low=0.4)).float()
        return ink * (1 - self._chance(n, 0.25) * (1 - crumbs))

    def _paint(self, ink: Tensor) -> Tensor:
        """Give ink and paper colours that differ in lightness, and uneven light."""
        n = len(ink)
        paper = self._uniform(n, 3, 1, 1)
        lightness = paper.mean(dim=1, keepdim=True)
        contrast = self._uniform(n, 1, 1, 1, low=0.2, high=0.9)
        darker = (self._uniform(n, 1, 1, 1) < lightness).float() * 2 - 1
        target = (lightness - darker * contrast).clamp(0, 1)
        tint = self._uniform(n, 3, 1, 1, low=-0.2, high=0.2)
        paint = (target + tint).clamp(0, 1)
        picture = paper * (1 - ink) + paint * ink
        coarse = self._uniform(n, 3, 4, 4, low=-1, high=1)
        light = F.interpolate(coarse, PICTURE_SIZE, mode="bilinear", align_corners=False)
        return picture + self._chance(n, 0.6) * self._uniform(n, 1, 1, 1, high=0.25) * light

    def _dirt(self, picture: Tensor) -> Tensor:
        """Add ruled lines, specks and noise."""
        n = len(picture)
        position = torch.arange(PICTURE_SIZE)
        for shape in ((n, 1, PICTURE_SIZE, 1), (n, 1, 1, PICTURE_SIZE)):
            pitch = torch.randint(5, 33, (n, 1, 1, 1), generator=self._generator)
            start = torch.randint(0, 32, (n, 1, 1, 1), generator=self._generator)
            line = ((position.view(1, *shape[1:]) + start) % pitch == 0).float()
            strength = self._chance(n, 0.25) * self._uniform(n, 1, 1, 1, high=0.7)
            picture = picture + strength * line * (self._uniform(n, 3, 1, 1) - picture)
        specks = (self._uniform(n, 1, PICTURE_SIZE, PICTURE_SIZE) < 0.04).float()
        speck = self._chance(n, 0.2) * specks
        picture = picture + speck * (self._uniform(n, 3, 1, 1) - picture)
        noise = torch.randn(picture.shape, generator=self._generator)
        return picture + self._uniform(n, 1, 1, 1, high=0.12) * noise
