"""A distilled student to classify pictures with, from a folder of its own.

The folder has `student.safetensors`, the weights of the network with prompts, projector and class
vectors, and `model.json`: sizes, class names, and where the student comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from .network import Network, Sizes
from .pictures import MOST_PIXELS, BadPicture, Picture, centre_square, read

WEIGHTS = "student.safetensors"
DESCRIPTION = "model.json"

Ranking = list[tuple[str, float]]
"""Class names with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Answers:
    """What a student says about B pictures.

    Attributes:
        probabilities: (B, C), fp32.
        features: (B, D), fp32, of unit length.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


class PortableStudent:
    """A student ready to classify.

    Attributes:
        network: from pixels to probabilities.
        names: C class names, by label.
        image_size: S, the side of what the network sees, in pixels.
        info: what `model.json` says.
    """

    def __init__(self, network: Network, info: dict[str, Any]) -> None:
        """Take a network and its description.

        Args:
            network: on the device to compute on.
            info: with `names`, one for each class vector.
        """
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.info = info
        self.names: tuple[str, ...] = tuple(info["names"])
        self.image_size = network.sizes.image_size

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> PortableStudent:
        """Load a student from its folder.

        Args:
            folder: with `student.safetensors` and `model.json`.
            device: where to compute.

        Raises:
            OSError: a file is not there.
            Exception: a file does not hold what it should.
        """
        folder = Path(folder)
        info = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        with torch.device("meta"):  # what is made here is replaced at once
            network = Network(Sizes(**info["network"]))
        # Copies lie where torch puts them: at other addresses it may compute other last bits.
        weights = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
        network.load_state_dict(weights, assign=True)
        network.to(device)
        return cls(network, info)

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Name what is in a picture.

        Args:
            picture: a path, encoded bytes, base64 text, an array (H, W, 3) of uint8, or a PIL
                image.
            top: how many names at most.

        Returns:
            Names with probabilities, the likeliest first.

        Raises:
            BadPicture: it is not a readable picture.
            ValueError: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Name what is in each of many pictures; see `classify`.

        Args:
            pictures: of any kinds that `classify` takes.
            top: how many names at most for each.
            batch_size: how many go through the network together.

        Returns:
            One ranking per picture, in their order.
        """
        if top < 1:
            raise ValueError(f"top = {top}; ask for at least one name")
        rankings: list[Ranking] = []
        for start in range(0, len(pictures), batch_size):
            pixels = np.stack([self.crop(one) for one in pictures[start : start + batch_size]])
            rankings.extend(self.rank(self.answers(pixels).probabilities, top=top))
        return rankings

    def crop(self, picture: Picture, *, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
        """Decode a picture and cut out what the network sees: (S, S, 3).

        Raises:
            BadPicture: it is not a readable picture, or has more pixels, or would have them once
                its shorter side is resized.
        """
        image = read(picture, most_pixels=most_pixels)
        short, long = sorted(image.size)
        if self.image_size**2 * long > most_pixels * short:
            raise BadPicture(f"{image.width} x {image.height} pixels, too long for its other side")
        return np.asarray(centre_square(image, self.image_size))

    @torch.inference_mode()
    def answers(self, pixels: NDArray[np.uint8]) -> Answers:
        """Compare pictures (B, S, S, 3) with all classes."""
        given = torch.from_numpy(pixels).to(self.network.class_vectors.device)
        probabilities, features = self.network(given)
        return Answers(probabilities.cpu().numpy(), features.cpu().numpy())

    def rank(self, probabilities: NDArray[np.float32], *, top: int = 5) -> Iterator[Ranking]:
        """Put names to probabilities (B, C): one ranking per row."""
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for row, labels in zip(probabilities, best, strict=True):
            yield [(self.names[label], float(row[label])) for label in labels]
