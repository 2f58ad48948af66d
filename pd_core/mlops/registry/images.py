"""Images of a prepared data set that a version is registered with."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadData
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.prepared import image_root, read_prepared, read_unlabelled
from pd_core.mlops.registry import INPUT

EXAMPLE = "input_example.json"
"""MLflow's name of the input example: `{"image": [base64 text]}`, a list in earlier releases."""

MOST_TRAINING_IMAGES = 1000
"""Images whose predictions a version holds as its reference for drift."""


def example_image(prepared: Path, *, data_root: Path = Path(), size: int = 336) -> bytes:
    """Return the first intact test image (unlabelled one, without test images) as a PNG file.

    Images with a longest side of more than `size` pixels are made smaller.

    Raises:
        MissingFile: the data set is not prepared, or its image is not there.
        BadData: all of them are corrupt.
    """
    split = read_prepared(prepared, data_root=data_root)
    paths = [path for path, _ in split.test] or read_unlabelled(prepared)
    image = next(_intact(ImageStore(split.images), paths), None)
    if image is None:
        raise BadData(f"all images of '{prepared}' are corrupt, as {paths[0]}; replace them")
    image = image.copy()
    image.thumbnail((size, size))
    return _png(image)


def training_images(
    prepared: Path, *, data_root: Path = Path(), most: int = MOST_TRAINING_IMAGES
) -> Iterator[Image.Image]:
    """Open images that the student was distilled on, evenly from the list; not corrupt ones.

    At most `most` are opened.

    Raises:
        MissingFile: the data set is not prepared, or an image is not there.
    """
    paths = read_unlabelled(prepared)
    step = max(1, -(-len(paths) // most))
    store = ImageStore(image_root(prepared, data_root=data_root), keep_bytes=0)
    return _intact(store, paths[::step])


def input_example(model: Path) -> bytes:
    """Return the image file that a registered model's folder has as its input example.

    Raises:
        MissingFile, BadArtifact: it has none.
    """
    content = read_json(model / EXAMPLE, remedy="register the version again")
    images = content[INPUT] if isinstance(content, dict) else content
    return base64.b64decode(images[0])


def grey_image(size: int) -> bytes:
    """Return a grey square as a PNG file."""
    return _png(Image.new("RGB", (size, size), "grey"))


def _intact(store: ImageStore, paths: Sequence[str]) -> Iterator[Image.Image]:
    for path in paths:
        with suppress(BadData):
            yield store.open(path)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
