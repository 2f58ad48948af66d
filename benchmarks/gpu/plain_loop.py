"""The plain path of a training: a loop over torch's `DataLoader` with torchvision's transforms."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks import reference
from benchmarks.gpu.setting import half
from benchmarks.sizes import optimizer
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher


class Images(Dataset[Tensor]):
    """Random views of image files, normalised: (3, S, S)."""

    def __init__(self, root: Path, paths: Sequence[str], transform: Any) -> None:
        self._root = root
        self._paths = paths
        self._transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return a view of an image."""
        with Image.open(self._root / self._paths[index]) as image:
            view: Tensor = self._transform(image.convert("RGB"))
            return view


def random_views(size: int, scale: tuple[float, float], mean: Any, std: Any) -> Any:
    """Make torchvision's transform to random views (3, size, size)."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                size, scale, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def train(
    teacher: Teacher, student: Student, tokens: Tensor, loader: Iterable[Tensor]
) -> list[float]:
    """Distil for an epoch in fp16; return the losses.

    Args:
        teacher: with its prompts.
        student: in training mode.
        tokens: (C, L) of the teacher's texts.
        loader: of views (B, 3, S, S).

    Raises:
        RuntimeError: a loss is not finite.
    """
    device = tokens.device
    sgd, scaler = optimizer(student), torch.amp.GradScaler(device.type)
    losses = []
    for images in loader:
        views = images.to(device, non_blocking=True)
        sgd.zero_grad()
        with half(device):
            loss = reference.distillation_loss(teacher, student, views, tokens)
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(sgd)
        scaler.update()
        losses.append(loss.item())
    if not all(map(math.isfinite, losses)):
        raise RuntimeError("a loss of the plain path is not finite")
    return losses
