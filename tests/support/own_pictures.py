"""A data set of the user's own, of random pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from pd_core.data.catalog.catalogue import OwnImages, PrepareConfig
from pd_core.data.loading.splits import Protocol

OWN = OwnImages(labelled="own/labelled", unlabelled="own/unlabelled", test="own/test")

CONFIG = PrepareConfig(
    own=OWN,
    protocol=Protocol.ALL_CLASSES,
    shots=1,
    val_shots=1,
    unlabelled_per_class=None,
    transductive=False,
)


def picture(file: Path, seed: int) -> None:
    """Write a picture of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def write(root: Path) -> Path:
    """Write two classes with three train and two test images each, and four unlabelled ones."""
    folder, seed = root / "own", 0
    for part, count in (("labelled", 3), ("test", 2)):
        for name in ("box", "circle"):
            for number in range(count):
                picture(folder / part / name / f"{number}.png", seed := seed + 1)
    for number in range(4):
        picture(folder / "unlabelled" / f"{number}.png", seed := seed + 1)
    return folder
