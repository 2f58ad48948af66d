"""What the `prepare` stage hands to the others: one folder per data set.

`split.json` has the labels; `unlabelled.json` only has paths, and is all that
distillation reads of the pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.artifacts import read_json
from pd_core.data.splits import Protocol
from pd_core.errors import BadArtifact

Labelled = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Prepared:
    """The labelled side of a prepared data set.

    Attributes:
        dataset: its name.
        classes: class names, by label.
        base_count: how many of the first labels are base classes.
        protocol: which classes the teacher may see labels of.
        images: folder or zip file of the pictures.
        few_shot: path and label of each image that the teacher is tuned on.
        few_shot_val: the same, to choose among its recipes.
        val: path and label of each validation image.
        test: path and label of each test image.
    """

    dataset: str
    classes: tuple[str, ...]
    base_count: int
    protocol: Protocol
    images: Path
    few_shot: Labelled
    few_shot_val: Labelled
    val: Labelled
    test: Labelled

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the classes that the teacher sees labels of, by label."""
        match self.protocol:
            case Protocol.BASE_TO_NOVEL:
                return self.classes[: self.base_count]
            case Protocol.ALL_CLASSES:
                return self.classes


def read_prepared(folder: Path, *, data_root: Path = Path()) -> Prepared:
    """Read the labelled side of a prepared data set.

    Args:
        folder: written by the stage `prepare`.
        data_root: folder that holds the photo data sets; embedded ones bring their pictures.

    Raises:
        MissingFile: the folder holds no prepared data set.
        BadArtifact: an entry is missing, or a few-shot label is not of a class
            that the protocol teaches.
    """
    content = _read(folder, "split.json")
    try:
        prepared = Prepared(
            dataset=content["dataset"],
            classes=tuple(content["classes"]),
            base_count=int(content["base_classes"]),
            protocol=Protocol(content["protocol"]),
            images=_image_root(folder, content["images"], data_root),
            few_shot=_labelled(content["few_shot"]),
            few_shot_val=_labelled(content["few_shot_val"]),
            val=_labelled(content["val"]),
            test=_labelled(content["test"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BadArtifact(
            f"'{folder / 'split.json'}' is wrong at {error}; {_again(folder)}"
        ) from None
    taught = len(prepared.taught)
    wrong = [label for _, label in prepared.few_shot if not 0 <= label < taught]
    if wrong:
        raise BadArtifact(
            f"'{folder / 'split.json'}' teaches label {wrong[0]} though only the first {taught}"
            f" classes may be taught; {_again(folder)}"
        )
    return prepared


def read_unlabelled(folder: Path) -> tuple[str, ...]:
    """Read the paths of the unlabelled pictures.

    Raises:
        MissingFile: the folder holds no prepared data set.
        BadArtifact: the file holds anything but paths.
    """
    content = _read(folder, "unlabelled.json")
    if not isinstance(content, list) or not all(isinstance(path, str) for path in content):
        raise BadArtifact(
            f"'{folder / 'unlabelled.json'}' must be a list of paths and nothing else;"
            f" {_again(folder)}"
        )
    return tuple(content)


def image_root(folder: Path, *, data_root: Path = Path()) -> Path:
    """Find the folder or zip file of a prepared data set's pictures.

    Args:
        folder: written by the stage `prepare`.
        data_root: folder that holds the photo data sets.

    Raises:
        MissingFile: the folder holds no prepared data set.
    """
    return _image_root(folder, str(_read(folder, "split.json")["images"]), data_root)


def _image_root(folder: Path, images: str, data_root: Path) -> Path:
    """Resolve the entry: beside the split if it is there, else below the data root."""
    beside = folder / images
    return beside if beside.exists() else data_root / images


def _labelled(rows: list[list[Any]]) -> Labelled:
    return tuple((str(path), int(label)) for path, label in rows)


def _read(folder: Path, name: str) -> Any:
    return read_json(folder / name, what="prepared data set", remedy=_again(folder))


def _again(folder: Path) -> str:
    return f"run `dvc repro prepare@{folder.name}`"
