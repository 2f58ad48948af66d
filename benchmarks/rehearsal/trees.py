"""Copies of the published data sets: their folders, label files and classes, with few images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import miniatures

from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, dataset_spec
from pd_core.data.catalog.readers import sources

PIXELS = {
    "imagenet": (500, 375),
    "caltech101": (300, 240),
    "oxford_pets": (500, 375),
    "stanford_cars": (700, 480),
    "oxford_flowers": (670, 500),
    "food101": (512, 512),
    "fgvc_aircraft": (1020, 690),
    "sun397": (900, 680),
    "dtd": (500, 450),
    "eurosat": (64, 64),
    "ucf101": (320, 240),
    "imagenetv2": (500, 375),
    "imagenet_sketch": (700, 700),
    "imagenet_a": (500, 400),
    "imagenet_r": (450, 450),
}
"""Usual width and height of each data set's images, which decide the time of decoding."""

_LEAST = {
    Layout.CLASS_FOLDERS: (2, 1, 2),
    Layout.FLOWERS: (2, 1, 2),
    Layout.IMAGENET: (2, 0, 1),
    Layout.IMAGENET_TEST: (0, 0, 1),
    Layout.IMAGENET_NUMBERED: (0, 0, 1),
}
"""Train, validation and test images of a class that the lists can be drawn from; see below."""


def row_of(name: str, share: float) -> DatasetSpec:
    """Return a data set's row with a share of its images, and all of its classes."""
    row = dataset_spec(name)
    least = _LEAST.get(row.layout, (2, 1, 1))
    counts = (
        row.num_classes * max(few, round(share * (count or 0) / row.num_classes))
        for few, count in zip(least, (row.train, row.val, row.test), strict=True)
    )
    train, val, test = counts
    return replace(row, train=train, val=val, test=test)


def write(root: Path, share: float) -> Iterator[DatasetSpec]:
    """Write copies of all data sets below a data root, and yield their rows.

    A data set that is there is left as it is.
    """
    for name in miniatures.NAMES:
        row = row_of(name, share)
        if not (root / row.folder).exists():
            miniatures.write(row, root, pixels=PIXELS[name])
        yield row


def write_fingerprint(row: DatasetSpec, root: Path, folder: Path) -> Path:
    """Write the fingerprint of a copy."""
    file = folder / f"{row.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    level = prints.Level.SAMPLE
    prints.write(file, prints.fingerprint(sources(row, root), root / row.folder, level=level))
    return file
