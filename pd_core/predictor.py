"""Classify pictures with a distilled student: the student, its class vectors, nothing else.

The student comes from a folder, either the `student` stage's output or a bundle, see `bundle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pd_core.artifacts import read_tensors
from pd_core.class_vectors import FILE as VECTORS_FILE
from pd_core.class_vectors import ClassVectors
from pd_core.classifier import for_student
from pd_core.errors import BadArtifact, BadData, BadParams, missing
from pd_core.models.clip import load_clip
from pd_core.models.fold import fold
from pd_core.models.student import Student
from pd_core.portable.pictures import BadPicture, Picture
from pd_core.portable.student import DESCRIPTION, PortableStudent, Ranking

STUDENT_FILE = "student.safetensors"


class Predictor:
    """A student ready to classify; what a user can put right is a `PdError`.

    Attributes:
        names: C class names, by label.
        student: what answers.
    """

    def __init__(self, student: PortableStudent) -> None:
        """Take a student."""
        self.names = student.names
        self.student = student

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
            folder: a bundle, or `data/student/<data set>`.
            vectors: class vectors, if they are neither in the folder nor at
                `class_vectors/<data set>` beside its parent.
            weights: of the student's CLIP, if they do not ship with the package.
            device: where to compute.

        Raises:
            MissingFile: a file is not there.
            BadArtifact: a file does not hold what it should.
        """
        folder = Path(folder)
        if (folder / DESCRIPTION).is_file():
            return cls(load_bundle(folder, device=device))
        found = Path(vectors) if vectors else _vectors_beside(folder)
        remedy = f"run `dvc repro student@{folder.name}`, or give another folder"
        return cls(stand_alone(folder / STUDENT_FILE, found, weights, device=device, remedy=remedy))

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Name what is in a picture; see `PortableStudent.classify`.

        Raises:
            MissingFile: the path leads nowhere.
            BadData: it is not a readable picture.
            BadParams: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Name what is in each of many pictures; see `classify`, whose errors it has."""
        if top < 1:
            raise BadParams(f"top = {top}; ask for at least one name")
        for picture in pictures:
            if isinstance(picture, Path) and not picture.is_file():
                raise missing("picture", picture, "check the path")
        with _refusals():
            return self.student.classify_many(pictures, top=top, batch_size=batch_size)


def load_student(
    folder: Path | str,
    *,
    vectors: Path | str | None = None,
    weights: Path | str | None = None,
    device: str = "cpu",
) -> Predictor:
    """Load a distilled student to classify pictures with; see `Predictor.load`."""
    return Predictor.load(folder, vectors=vectors, weights=weights, device=device)


def load_bundle(folder: Path, *, device: str = "cpu") -> PortableStudent:
    """Load a student from a bundle.

    Raises:
        BadArtifact: a file is missing, or does not hold what it should.
    """
    try:
        return PortableStudent.load(folder, device=device)
    except Exception as error:  # JSON, safetensors and torch raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise BadArtifact(
            f"'{folder}' holds no student ({reason}); fetch or register it again"
        ) from None


def stand_alone(
    student: Path,
    vectors: Path,
    weights: Path | str | None = None,
    *,
    device: str = "cpu",
    remedy: str = "run the student stage",
) -> PortableStudent:
    """Join what the stages made into a student that stands alone.

    Args:
        student: the `student` stage's safetensors file.
        vectors: the class vectors that it was trained on.
        weights: of the student's CLIP; None if they ship with the package.
        device: where to compute.
        remedy: what to do when there is no student.

    Raises:
        MissingFile: a file is not there.
        BadArtifact: they do not fit together.
    """
    _, metadata = read_tensors(student, what="student", remedy=remedy)
    towers = load_clip(metadata.get("model", ""), weights, device=device)
    trained = Student.load(student, towers, remedy=remedy)
    known = for_student(trained, ClassVectors.load(vectors))
    _check_width(vectors, known, int(metadata["feature_width"]))
    network = fold(trained, known.vectors).to(device)
    info = {
        "names": known.names,
        "model": towers.name,
        "vectors": known.source,
        "text_features": str(trained.text_features),
    }
    return PortableStudent(network, info)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BadPicture as error:
        raise BadData(str(error)) from None


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
