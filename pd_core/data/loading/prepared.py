"""Outputs of the stage `prepare`: a folder for each data set.

`split.json` has labels; distillation reads only the paths in `unlabelled.json`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_core.core.artifacts import check_sum, read_json, write_json, write_sums
from pd_core.core.errors import BadArtifact
from pd_core.data.loading.paths import PathList
from pd_core.data.loading.splits import Protocol

Labelled = tuple[tuple[str, int], ...]

SPLIT = "split.json"
UNLABELLED = "unlabelled.json"
_WHAT = "prepared data set"


@dataclass(frozen=True)
class Prepared:
    """Labelled part of a prepared data set; lists have paths and labels."""

    dataset: str
    classes: tuple[str, ...]  # names, by label
    base_count: int  # number of base classes, the first labels
    protocol: Protocol
    images: Path  # folder or zip file
    few_shot: Labelled  # training images of the teacher
    few_shot_val: Labelled  # validation images of the teacher
    val: Labelled
    test: Labelled

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the classes with labels for the teacher, by label."""
        match self.protocol:
            case Protocol.BASE_TO_NOVEL:
                return self.classes[: self.base_count]
            case Protocol.ALL_CLASSES:
                return self.classes
            case Protocol.CROSS_DATASET | Protocol.DOMAIN_GENERALISATION:
                return ()


def write_prepared(folder: Path, split: Mapping[str, Any], unlabelled: Iterable[str]) -> None:
    """Write `split.json`, `unlabelled.json` and checksums of the folder, which may have images.

    Args:
        folder: of the prepared data set.
        split: entries for `read_prepared`, and more for information.
        unlabelled: paths of the unlabelled images.
    """
    write_json(folder / SPLIT, split)
    write_json(folder / UNLABELLED, list(unlabelled))
    write_sums(folder)


def read_split(folder: Path) -> dict[str, Any]:
    """Read `split.json`; raises as `read_prepared`."""
    content: dict[str, Any] = _read(folder, SPLIT)
    return content


def read_prepared(folder: Path, *, data_root: Path = Path()) -> Prepared:
    """Read the labelled part of a prepared data set.

    Args:
        folder: output of the stage `prepare`.
        data_root: folder of the photo data sets; embedded ones have their images in `folder`.

    Raises:
        MissingFile: there is no prepared data set.
        BadArtifact: it is corrupt, or a few-shot label is not one of the protocol's.
    """
    content = _read(folder, SPLIT)
    try:
        prepared = Prepared(
            dataset=content["dataset"],
            classes=_names(content["classes"]),
            base_count=int(content["base_classes"]),
            protocol=Protocol(content["protocol"]),
            images=_image_root(folder, content["images"], data_root),
            few_shot=_labelled(content["few_shot"]),
            few_shot_val=_labelled(content["few_shot_val"]),
            val=_labelled(content["val"]),
            test=_labelled(content["test"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BadArtifact(f"'{folder / SPLIT}' is wrong at {error}; {_again(folder)}") from None
    count, rows = len(prepared.classes), (*prepared.few_shot_val, *prepared.val, *prepared.test)
    invalid = [label for _, label in rows if not 0 <= label < count]
    if invalid or not 0 <= prepared.base_count <= count:
        raise BadArtifact(
            f"'{folder / SPLIT}' has {count} classes, {prepared.base_count} of them base classes,"
            f" and labels such as {invalid[:1]}; {_again(folder)}"
        )
    taught = len(prepared.taught)
    invalid = [label for _, label in prepared.few_shot if not 0 <= label < taught]
    if invalid:
        raise BadArtifact(
            f"'{folder / SPLIT}' has few-shot label {invalid[0]}, but only the first {taught}"
            f" classes have labels; {_again(folder)}"
        )
    return prepared


def read_unlabelled(folder: Path) -> PathList:
    """Read the paths of the unlabelled images.

    Raises:
        MissingFile: there is no prepared data set.
        BadArtifact: it is corrupt, or not a list of paths.
    """
    content = _read(folder, UNLABELLED)
    if not isinstance(content, list) or not all(isinstance(path, str) for path in content):
        raise BadArtifact(f"'{folder / UNLABELLED}' must be a list of paths; {_again(folder)}")
    return PathList(content)


def image_root(folder: Path, *, data_root: Path = Path()) -> Path:
    """Return the folder or zip file of the images; raises as `read_prepared`."""
    return _image_root(folder, str(_read(folder, SPLIT)["images"]), data_root)


def _image_root(folder: Path, images: str, data_root: Path) -> Path:
    """Resolve the entry: beside the split if it exists, otherwise below the data root."""
    beside = folder / images
    try:
        if beside.is_file():
            check_sum(beside, what="images", remedy=_again(folder))
        return beside if beside.exists() else data_root / images
    except OSError as error:  # such as a name that is too long
        raise BadArtifact(
            f"'{folder / SPLIT}' has invalid images ({error.strerror}); {_again(folder)}"
        ) from None


def _names(classes: Any) -> tuple[str, ...]:
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("'classes', which must be a list of names")
    return tuple(classes)


def _labelled(rows: list[list[Any]]) -> Labelled:
    for path, label in rows:
        if not isinstance(path, str) or type(label) is not int:  # `True` is an int, too
            raise ValueError(f"{[path, label]}, which must be a path and a label")
    return tuple((path, label) for path, label in rows)


def _read(folder: Path, name: str) -> Any:
    remedy = _again(folder)
    content = read_json(folder / name, what=_WHAT, remedy=remedy)
    check_sum(folder / name, what=_WHAT, remedy=remedy)
    return content


def _again(folder: Path) -> str:
    return f"run `dvc repro prepare@{folder.name}`"
