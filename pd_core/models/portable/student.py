"""Classifier of images, loaded from a folder with `student.safetensors` and `model.json`.

The weights are those of the network with prompts, projector and class vectors; the description has
sizes, class names, and the student's origin. `tower.json` has the graph of an image tower that is
not CLIP's vision transformer. A student that was exported has the file of its runtime in place of
weights; its description has `export`, with format and precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from .network import ExportedNetwork, HeadSizes, Network, Sizes, StudentNetwork
from .pictures import MOST_PIXELS, BadPicture, Picture, read
from .preprocess import Preprocess
from .runtimes import Runtime, TorchRuntime, load
from .tower import ExportedTower

WEIGHTS = "student.safetensors"
DESCRIPTION = "model.json"
TOWER = "tower.json"

Ranking = list[tuple[str, float]]
"""Class names with probabilities, the most probable first."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for B images.

    Attributes:
        probabilities: (B, C), fp32.
        features: (B, D), fp32, of unit length.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


class PortableStudent:
    """A student for inference.

    Attributes:
        runtime: from pixels to probabilities.
        preprocess: of the images.
        names: C class names, by label.
        image_size: S, the side of the network's input in pixels.
        info: content of `model.json`.
    """

    def __init__(self, model: StudentNetwork | Runtime, info: dict[str, Any]) -> None:
        """Join a model and its description.

        Args:
            model: a network, on its device, or the runtime of an exported one.
            info: `names` of the classes, and `preprocess` of a runtime.
        """
        self.runtime: Runtime
        if isinstance(model, StudentNetwork):
            self.runtime, self.preprocess = TorchRuntime(model), model.preprocess
        else:
            self.runtime, self.preprocess = model, Preprocess.of(info["preprocess"])
        self.info = info
        self.names: tuple[str, ...] = tuple(info["names"])
        self.image_size = self.preprocess.size

    @property
    def network(self) -> StudentNetwork:
        """The network in torch; TypeError if the student was exported."""
        if not isinstance(self.runtime, TorchRuntime):
            raise TypeError("an exported student has no network")
        return self.runtime.network

    @property
    def precision(self) -> str:
        """`fp32`, or that of the export: `fp16` or `int8`."""
        export: Mapping[str, str] = self.info.get("export", {})
        return export.get("precision", "fp32")

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> PortableStudent:
        """Load a student from its folder onto a device; raises if a file is missing or invalid."""
        folder = Path(folder)
        info = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if "export" in info:  # on the CPU
            return cls(load(folder, info["export"]), info)
        with torch.device("meta"):  # its weights are replaced
            network = _network(folder, info)
        # Copies, aligned by torch: other alignments can change the last bits.
        weights = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
        network.load_state_dict(weights, assign=True)
        network.to(device)
        return cls(network, info)

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Classify an image.

        Args:
            picture: path, encoded bytes, base64 text, uint8 array (H, W, 3), or PIL image.
            top: maximum number of classes.

        Returns:
            Class names with probabilities, the most probable first.

        Raises:
            BadPicture: the image cannot be read.
            ValueError: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Classify images in batches; see `classify`."""
        if top < 1:
            raise ValueError(f"top = {top}; ask for at least one name")
        rankings: list[Ranking] = []
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            pixels = np.stack([self.crop(picture) for picture in batch])
            rankings.extend(self.rank(self.answers(pixels).probabilities, top=top))
        return rankings

    def crop(self, picture: Picture, *, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
        """Decode an image and crop it to the network's input: (S, S, 3).

        Raises:
            BadPicture: it cannot be read, or has too many pixels before or after it is resized.
        """
        image = read(picture, most_pixels=most_pixels)
        width, height = self.preprocess.resized(*image.size)
        if width * height > most_pixels:
            raise BadPicture(f"{image.width} x {image.height} pixels, too long for its other side")
        return np.asarray(self.preprocess.crop(image))

    def answers(self, pixels: NDArray[np.uint8]) -> Predictions:
        """Compute the predictions for pixels (B, S, S, 3)."""
        return Predictions(*self.runtime.run(pixels))

    def rank(self, probabilities: NDArray[np.float32], *, top: int = 5) -> Iterator[Ranking]:
        """Rank the classes in each row of probabilities (B, C)."""
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for row, labels in zip(probabilities, best, strict=True):
            yield [(self.names[label], float(row[label])) for label in labels]


def _network(folder: Path, info: Mapping[str, Any]) -> StudentNetwork:
    """Create the network that a description is of, on torch's default device."""
    preprocess = Preprocess.of(info["preprocess"]) if "preprocess" in info else None
    if "tower" not in info:
        return Network(Sizes(**info["network"]), preprocess)
    if preprocess is None:
        raise ValueError(f"{DESCRIPTION} has no preprocess")
    tower = ExportedTower(json.loads((folder / TOWER).read_text(encoding="utf-8")))
    network = ExportedNetwork(HeadSizes(**info["network"]), tower, preprocess).eval()
    network(torch.empty(1, preprocess.size, preprocess.size, 3, dtype=torch.uint8))  # checks it
    return network
