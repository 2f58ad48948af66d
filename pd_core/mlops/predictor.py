"""Classify images with a distilled student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pd_core.core.artifacts import read_tensors
from pd_core.core.errors import BadArtifact, BadData, BadParams, missing
from pd_core.mlops.fold import fold
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import ClassVectors, for_student
from pd_core.models.clip import load_clip
from pd_core.models.portable.pictures import BadPicture, Picture
from pd_core.models.portable.student import DESCRIPTION, PortableStudent, Ranking
from pd_core.models.student import Student

STUDENT_FILE = "student.safetensors"


class Predictor:
    """Student that classifies images; errors that users can correct are `PdError`s.

    Attributes:
        names: C class names, by label.
        student: the network and its description.
    """

    def __init__(self, student: PortableStudent) -> None:
        """Wrap a student."""
        self.names = student.names
        self.student = student

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Classify an image; see `PortableStudent.classify`.

        Raises:
            MissingFile: the path does not exist.
            BadData: the image is not readable.
            BadParams: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Classify images in batches; errors as of `classify`."""
        if top < 1:
            raise BadParams(f"top = {top}; ask for at least one name")
        for picture in pictures:
            if isinstance(picture, Path) and not picture.is_file():
                raise missing("image", picture, "check the path")
        try:
            return self.student.classify_many(pictures, top=top, batch_size=batch_size)
        except BadPicture as error:
            raise BadData(str(error)) from None


def load_student(
    folder: Path | str,
    *,
    vectors: Path | str | None = None,
    weights: Path | str | None = None,
    device: str = "cpu",
) -> Predictor:
    """Load a student from a bundle or from the `student` stage's output to classify images.

    Args:
        folder: a bundle, or `data/student/<data set>`.
        vectors: file of class vectors, if they are neither in the folder nor at
            `class_vectors/<data set>` beside its parent.
        weights: weights of the student's CLIP, if they do not ship with the package.
        device: a device of torch.

    Raises:
        MissingFile: a file is missing.
        BadArtifact: a file has other contents.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).is_file():
        return Predictor(load_bundle(folder, device=device))
    file = Path(vectors) if vectors else folder / VECTORS_FILE
    if not vectors and not file.is_file():
        file = folder.parent.parent / "class_vectors" / folder.name / VECTORS_FILE
    if not file.is_file():
        path = f"data/class_vectors/{folder.name}/{VECTORS_FILE}"
        raise missing(
            "class vectors", file, f"run `dvc repro student@{folder.name}`, or get them from its"
            f" project: `dvc get <repository> {path} -o {folder}`"
        )  # fmt: skip
    remedy = f"run `dvc repro student@{folder.name}`, or give another folder"
    return Predictor(
        stand_alone(folder / STUDENT_FILE, file, weights, device=device, remedy=remedy)
    )


def load_bundle(folder: Path, *, device: str = "cpu") -> PortableStudent:
    """Load a student from a bundle.

    Raises:
        BadArtifact: a file is missing, or has other contents.
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
    """Fold the stages' outputs into one student that needs no other file.

    Args:
        student: safetensors file of the `student` stage.
        vectors: file of the class vectors that it was trained with.
        weights: weights of the student's CLIP; None if they ship with the package.
        device: a device of torch.
        remedy: ends the error if there is no student.

    Raises:
        MissingFile: a file is missing.
        BadArtifact: the files do not fit together.
    """
    _, metadata = read_tensors(student, what="student", remedy=remedy)
    towers = load_clip(metadata.get("model", ""), weights, device=device)
    trained = Student.load(student, towers, remedy=remedy)
    classes = for_student(trained, ClassVectors.load(vectors))
    width, expected = classes.vectors.shape[1], int(metadata["feature_width"])
    if width != expected:
        raise BadArtifact(
            f"class vectors '{vectors}' are {width} wide, the student's features {expected}; give "
            f"those that it was distilled with"
        )
    network = fold(trained, classes.vectors).to(device)
    info = {
        "names": classes.names,
        "model": towers.name,
        "vectors": classes.source,
        "text_features": str(trained.text_features),
    }
    return PortableStudent(network, info)
