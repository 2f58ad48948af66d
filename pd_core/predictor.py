"""Classify pictures with a distilled student: the student, its class vectors, nothing else.

A student is used from a folder, either the `student` stage's output or a bundle: the same files
together with the class vectors and `model.json`, which is what the registry holds.
"""

from __future__ import annotations

import base64
import binascii
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pd_core.artifacts import read_json, read_tensors, write_json
from pd_core.atomic import write_folder
from pd_core.class_vectors import FILE as VECTORS_FILE
from pd_core.class_vectors import ClassVectors
from pd_core.classifier import for_student
from pd_core.data.decode import UNREADABLE, ImageStore, open_picture, reason, to_rgb
from pd_core.data.prepared import read_prepared, read_unlabelled
from pd_core.data.transforms import eval_transform, normalise
from pd_core.errors import BadArtifact, BadData, BadParams, missing
from pd_core.models.clip import load_clip
from pd_core.models.student import Student

STUDENT_FILE = "student.safetensors"
MODEL_FILE = "model.json"

Picture = Any  # a path, encoded bytes, base64 text, an array (H, W, 3) of uint8, or a PIL image
Ranking = list[tuple[str, float]]  # class names with their probabilities, the likeliest first


class Predictor:
    """A student ready to classify.

    Attributes:
        names: C class names, by label.
    """

    def __init__(self, student: Student, vectors: ClassVectors) -> None:
        """Join a student and the class vectors of the teacher that it learnt from.

        Args:
            student: in evaluation mode, on the device to compute on.
            vectors: C classes, as wide as the student's features.
        """
        self.names = vectors.names
        self._student = student
        self._vectors = vectors.to(student.towers.device)
        self._transform = eval_transform(student.towers.image_size)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        vectors: Path | str | None = None,
        weights: Path | str | None = None,
        device: str = "cpu",
    ) -> Self:
        """Load a student from a bundle or from the `student` stage's output.

        Args:
            folder: a folder that `write_bundle` made, or `data/student/<data set>`.
            vectors: class vectors, if they are neither in the folder nor at
                `class_vectors/<data set>` beside its parent.
            weights: of the student's CLIP, if they neither ship with the package nor are named
                in the bundle.
            device: where to compute.

        Raises:
            MissingFile: a file is not there.
            BadArtifact: a file does not hold what it should.
        """
        folder = Path(folder)
        remedy = f"run `dvc repro student@{folder.name}`, or give another folder"
        path = folder / STUDENT_FILE
        _, metadata = read_tensors(path, what="student", remedy=remedy)
        if (folder / MODEL_FILE).is_file():
            weights = weights or read_json(folder / MODEL_FILE)["weights"]
        towers = load_clip(metadata.get("model", ""), weights, device=device)
        student = Student.load(path, towers, remedy=remedy)
        found = Path(vectors) if vectors else _vectors_beside(folder)
        known = for_student(student, ClassVectors.load(found))
        _check_width(found, known, int(metadata["feature_width"]))
        return cls(student, known)

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Name what is in a picture.

        Args:
            picture: a path, encoded bytes, base64 text, an array (H, W, 3) of uint8, or a PIL
                image.
            top: how many names at most.

        Returns:
            Names with probabilities, the likeliest first.

        Raises:
            BadData: it is not a readable picture.
            BadParams: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Name what is in each of many pictures; see `classify`.

        Args:
            pictures: of any kinds that `classify` takes.
            top: how many names at most for each.
            batch_size: how many go through the model together.

        Returns:
            One ranking per picture, in their order.
        """
        if top < 1:
            raise BadParams(f"top = {top}; ask for at least one name")
        rankings: list[Ranking] = []
        for start in range(0, len(pictures), batch_size):
            images = [decode(picture) for picture in pictures[start : start + batch_size]]
            crops = normalise([self._transform.crop(image) for image in images])
            rankings.extend(self._rank(self.probabilities(crops), top))
        return rankings

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of every class: (B, 3, H, W) normalised pictures -> (B, C)."""
        features = self._student(images.to(self._vectors.vectors.device))  # (B, D)
        logits = self._vectors.logits(features, logit_scale=self._student.logit_scale)
        return logits.softmax(dim=-1).cpu()

    def _rank(self, probabilities: Tensor, top: int) -> Iterator[Ranking]:
        best = probabilities.topk(min(top, len(self.names)))
        for values, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            yield [(self.names[label], value) for label, value in zip(labels, values, strict=True)]


def load_student(
    folder: Path | str,
    *,
    vectors: Path | str | None = None,
    weights: Path | str | None = None,
    device: str = "cpu",
) -> Predictor:
    """Load a distilled student to classify pictures with; see `Predictor.load`."""
    return Predictor.load(folder, vectors=vectors, weights=weights, device=device)


def write_bundle(
    folder: Path, *, student: Path, vectors: Path, weights: Path | str | None = None
) -> None:
    """Put what `Predictor.load` needs into one folder; the same input gives the same bytes.

    Args:
        folder: to make or replace.
        student: the `student` stage's safetensors file.
        vectors: the class vectors that it was trained on.
        weights: of the student's CLIP, as in the parameters; None if they ship with the package.

    Raises:
        MissingFile: one of the files is not there.
        BadArtifact: it is not a safetensors file.
        PdError: the folder cannot be written.
    """
    _, metadata = read_tensors(student, what="student", remedy="run the student stage")
    names = ClassVectors.load(vectors).names
    with write_folder(folder) as new:
        shutil.copyfile(student, new / STUDENT_FILE)
        shutil.copyfile(vectors, new / VECTORS_FILE)
        write_json(
            new / MODEL_FILE,
            {
                "model": metadata.get("model", ""),
                "weights": None if weights is None else str(weights),
                "classes": len(names),
            },
        )


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


def _first_readable(store: ImageStore, paths: Sequence[str]) -> Image.Image:
    """Open the first picture that is not damaged; the last one's damage is told if all are."""
    for path in paths[:-1]:
        try:
            return store.open(path).copy()
        except BadData:
            continue
    return store.open(paths[-1]).copy()


def decode(picture: Picture) -> Image.Image:
    """Turn any kind of picture into an RGB image.

    Text is a path if there is such a file, and base64 (also as a data URL) otherwise.

    Raises:
        MissingFile: a `Path` leads nowhere.
        BadData: it is not a readable picture.
    """
    name = f"'{picture}'" if isinstance(picture, Path) else f"the picture ({_kind(picture)})"
    try:
        if isinstance(picture, Image.Image):
            return to_rgb(picture)
        if isinstance(picture, str | Path | bytes | bytearray | memoryview):
            with open_picture(_source(picture)) as image:
                return to_rgb(image)
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(f"{array.dtype} of shape {array.shape}")
        return Image.fromarray(array).convert("RGB")
    except (*UNREADABLE, TypeError) as error:
        raise BadData(
            f"{name} cannot be read ({reason(error)}); give a path, the bytes of a picture file, "
            f"base64 text, or an array of (H, W, 3) uint8"
        ) from None


def _source(picture: str | Path | bytes | bytearray | memoryview) -> Path | io.BytesIO:
    if isinstance(picture, Path):
        if not picture.is_file():
            raise missing("picture", picture, "check the path")
        return picture
    if not isinstance(picture, str):
        return io.BytesIO(picture)
    if _is_file(picture):
        return Path(picture)
    text = picture.partition(",")[2] if picture.startswith("data:") else picture
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"'{text[:60]}' is neither a file nor base64") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def _kind(picture: object) -> str:
    return f"{len(picture)} bytes" if isinstance(picture, bytes) else type(picture).__name__


def _check_width(path: Path, vectors: ClassVectors, wanted: int) -> None:
    width = vectors.vectors.shape[1]
    if width != wanted:
        raise BadArtifact(
            f"class vectors '{path}' are {width} wide, the student's features {wanted}; give those "
            f"that it was distilled with"
        )


def _vectors_beside(folder: Path) -> Path:
    inside = folder / VECTORS_FILE
    if inside.is_file():
        return inside
    return folder.parent.parent / "class_vectors" / folder.name / VECTORS_FILE
