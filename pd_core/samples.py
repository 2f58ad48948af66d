"""Pictures and numbers of a prepared data set that go with its student."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pd_core.data.decode import ImageStore
from pd_core.data.prepared import Prepared, image_root, read_prepared, read_unlabelled
from pd_core.errors import BadData

MOST_TRAINING_PICTURES = 1000


def example_picture(prepared: Path, *, data_root: Path = Path(), size: int = 336) -> bytes:
    """Return a picture of a prepared data set as a PNG file, to show what the input is like.

    It is the first readable test picture, or unlabelled one where none is for testing.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.
        size: longest side in pixels; larger pictures are made smaller.

    Raises:
        MissingFile: the data set is not prepared, or its picture is not there.
        BadData: all of them are damaged.
    """
    split = read_prepared(prepared, data_root=data_root)
    store = ImageStore(split.images)
    image = _first_readable(store, [path for path, _ in split.test] or read_unlabelled(prepared))
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def training_pictures(
    prepared: Path, *, data_root: Path = Path(), most: int = MOST_TRAINING_PICTURES
) -> Iterator[Image.Image]:
    """Open pictures that the student was distilled on, evenly from the whole list.

    Damaged ones are left out.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.
        most: how many.

    Raises:
        MissingFile: the data set is not prepared, or a picture is not there.
    """
    paths = read_unlabelled(prepared)
    store = ImageStore(image_root(prepared, data_root=data_root), keep_bytes=0)
    step = max(1, -(-len(paths) // most))
    for path in paths[::step]:
        try:
            yield store.open(path)
        except BadData:
            continue


def counts(prepared: Path, *, data_root: Path = Path()) -> dict[str, int]:
    """Count what a student was made of and measured on.

    Args:
        prepared: folder written by the stage `prepare`.
        data_root: folder that holds the photo data sets.

    Returns:
        `classes`, `taught` (classes with labels), `labels`, `unlabelled`, and the test pictures of
        `base`, `novel` and `all` classes.
    """
    split = read_prepared(prepared, data_root=data_root)
    base = sum(label < split.base_count for _, label in split.test)
    return {
        "classes": len(split.classes),
        "taught": len(split.taught),
        "labels": len(split.few_shot),
        "unlabelled": len(read_unlabelled(prepared)),
        **_test_counts(split, base),
    }


def _test_counts(split: Prepared, base: int) -> dict[str, int]:
    return {"base": base, "novel": len(split.test) - base, "all": len(split.test)}


def _first_readable(store: ImageStore, paths: Sequence[str]) -> Image.Image:
    """Open the first picture that is not damaged; the last one's damage is told if all are."""
    for path in paths[:-1]:
        try:
            return store.open(path).copy()
        except BadData:
            continue
    return store.open(paths[-1]).copy()
