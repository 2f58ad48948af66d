"""Train, validation and test lists of a data set, from either of its label sources.

The community's split file takes precedence. Without it, the original annotations are read, and the
lists that they lack are drawn as the community drew them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from pd_core.core.errors import BadData, MissingFile
from pd_core.core.hooks import OnProgress
from pd_core.data.catalog.annotations import (
    ANNOTATION_FILES,
    class_folders,
    imagenet_names,
    labelled,
    listing,
    read_annotations,
)
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.data.catalog.label_files import read_lines, read_split_file
from pd_core.data.catalog.own import own_sources, read_own
from pd_core.data.loading.splits import (
    Items,
    Splits,
    check_paths_disjoint,
    train_val,
    train_val_test,
)

_IMAGENETS = (Layout.IMAGENET, Layout.IMAGENET_TEST, Layout.IMAGENET_NUMBERED)
_WNID_AND_NAME = re.compile(r"(n\d{8})\s+(.+)", re.ASCII)

CLASS_NAMES = "classnames.txt"
"""Class names beside the images of ImageNet and its variants; CLIP's are used without it."""


class LabelSource(StrEnum):
    """Source of a data set's lists."""

    EMBEDDED = "embedded"
    OWN = "own pictures"
    SPLIT_FILE = "split file"
    ANNOTATIONS = "original annotations"


def label_source(spec: DatasetSpec, root: Path) -> LabelSource:
    """Return the label source that `read_splits` uses, by the files that exist."""
    if spec.layout is Layout.EMBEDDED:
        return LabelSource.EMBEDDED
    if spec.own is not None:
        return LabelSource.OWN
    if spec.split_file is not None and (root / spec.folder / spec.split_file).is_file():
        return LabelSource.SPLIT_FILE
    return LabelSource.ANNOTATIONS


def image_root(spec: DatasetSpec, root: Path) -> Path:
    """Return the folder of all images, or the zip file of an embedded data set."""
    if spec.layout is Layout.EMBEDDED:
        from pd_core.data.catalog import embedded

        return root / embedded.ARCHIVE
    return root / spec.folder / spec.image_dir


def sources(spec: DatasetSpec, root: Path) -> tuple[Path, ...]:
    """Return the folders of images, then the label files, that a data set is read from."""
    folder, images = root / spec.folder, image_root(spec, root)
    folders = [images / part for part in spec.parts or (".",)]
    match label_source(spec, root):
        case LabelSource.EMBEDDED:
            return (images,)
        case LabelSource.OWN:
            return own_sources(spec.own, root) if spec.own else ()
        case LabelSource.SPLIT_FILE:
            return (*folders, folder / str(spec.split_file))
        case LabelSource.ANNOTATIONS:
            files = [folder / name for name in ANNOTATION_FILES.get(spec.layout, ())]
            if spec.layout in _IMAGENETS and (folder / CLASS_NAMES).is_file():
                files.append(folder / CLASS_NAMES)
            return (*folders, *files)


def read_splits(spec: DatasetSpec, root: Path, *, on_progress: OnProgress | None = None) -> Splits:
    """Read the lists of a data set and compare them with its row.

    Images are not read; where class folders are the labels, they are listed.

    Args:
        spec: The data set.
        root: Data root; for an embedded data set an existing folder that its images go to.
        on_progress: Called with images written and total images, for an embedded data set.

    Raises:
        MissingFile: A folder or a file is missing.
        BadData: The lists are corrupt, or do not have the classes and images of the row.
    """
    source = label_source(spec, root)
    match source:
        case LabelSource.EMBEDDED:
            from pd_core.data.catalog import embedded

            return embedded.build(spec.name, root, on_progress=on_progress)
        case LabelSource.OWN:
            return read_own(spec.own, root) if spec.own else Splits((), (), ())
        case LabelSource.SPLIT_FILE:
            _require_folders(spec, root)
            splits = read_split_file(root / spec.folder / str(spec.split_file))
        case LabelSource.ANNOTATIONS:
            _require_folders(spec, root)
            _require_files(spec, root)
            splits = _annotated(spec, root)
    check_paths_disjoint(splits.lists)
    problem = _repeated(splits) or _class_problem(spec, splits)
    problem = problem or count_problem(spec, splits, source)
    if problem:
        raise BadData(f"data set '{spec.name}': {problem}; download it again")
    return splits


def count_problem(spec: DatasetSpec, splits: Splits, source: LabelSource) -> str:
    """Compare the number of images with the row; return an empty text if they are equal.

    Drawn lists are counted together: rounding per class may move a few images between them.
    """
    row = {"train": spec.train, "validation": spec.val, "test": spec.test}
    differences: list[tuple[str, str]] = []
    for names in _counted_together(spec, source):
        sizes = [row[name] for name in names]
        expected = sum(size for size in sizes if size is not None)
        actual = sum(len(splits.lists[name]) for name in names)
        if None not in sizes and expected != actual:
            title = "" if len(names) == len(row) else f" {' and '.join(names)}"
            differences.append((f"{expected}{title}", f"{actual}{title}"))
    if not differences:
        return ""
    wanted, present = (", ".join(counts) for counts in zip(*differences, strict=True))
    return f"the lists are not the published ones: expected {wanted} images, found {present}"


def _counted_together(spec: DatasetSpec, source: LabelSource) -> tuple[tuple[str, ...], ...]:
    if source is LabelSource.ANNOTATIONS:
        match spec.layout:
            case Layout.CLASS_FOLDERS | Layout.FLOWERS:
                return (("train", "validation", "test"),)
            case Layout.PETS | Layout.CARS | Layout.SUN397 | Layout.UCF101:
                return (("train", "validation"), ("test",))
            case _:
                pass
    return (("train",), ("validation",), ("test",))


def _repeated(splits: Splits) -> str:
    for name, items in splits.lists.items():
        if len({item.path for item in items}) < len(items):
            path, count = Counter(item.path for item in items).most_common(1)[0]
            return f"the {name} list has '{path}' {count} times"
    return ""


def _class_problem(spec: DatasetSpec, splits: Splits) -> str:
    count = len(splits.class_names)
    if count == spec.num_classes:
        return ""
    return f"the lists have {count} classes, expected {spec.num_classes}"


def _require_folders(spec: DatasetSpec, root: Path) -> None:
    images = image_root(spec, root)
    for folder, title in (
        (root, "data root"),
        (root / spec.folder, "folder"),
        *((images / part, "image folder") for part in (".", *spec.parts)),
    ):
        if not folder.is_dir():
            raise MissingFile(
                f"data set '{spec.name}': no {title} '{folder}'; download {spec.title} to "
                f"'{root / spec.folder}', or set PD_DATA_ROOT to the folder that holds it"
            )


def _require_files(spec: DatasetSpec, root: Path) -> None:
    folder = root / spec.folder
    other = f", or the split file '{spec.split_file}'" if spec.split_file else ""
    for name in ANNOTATION_FILES.get(spec.layout, ()):
        if not (folder / name).is_file():
            raise MissingFile(
                f"data set '{spec.name}': no '{folder / name}'; download {spec.title}'s "
                f"annotations{other}, to '{folder}'"
            )


def _annotated(spec: DatasetSpec, root: Path) -> Splits:
    """Read the original annotations and draw the lists that they lack."""
    # Not the run's seed: with it, the test list would change from run to run.
    rng = random.Random(1)
    match spec.layout:
        case Layout.CLASS_FOLDERS:
            lists: tuple[Items, ...] = (_folders(spec, root),)
        case Layout.IMAGENET:
            train, test = (_folders(spec, root, f"{part}/") for part in spec.parts)
            return Splits(train, (), test)
        case Layout.IMAGENET_TEST | Layout.IMAGENET_NUMBERED:
            return Splits((), (), _folders(spec, root))
        case _:
            lists = read_annotations(spec.layout, root / spec.folder, spec.num_classes)
    match lists:
        case (everything,):
            return train_val_test(everything, rng)
        case (train, test):
            return Splits(*train_val(train, rng), test)
        case _:
            return Splits(*lists)


def _folders(spec: DatasetSpec, root: Path, part: str = "") -> Items:
    """List the class folders below the image root, or below a part of it (with a slash)."""
    folders = class_folders(spec)
    images = listing(
        image_root(spec, root) / part,
        [folder.removeprefix(part) for folder in folders if folder.startswith(part)],
        num_classes=spec.num_classes,
        ignored=spec.ignored,
    )
    return labelled(images, _names(spec, root, images), part)


def _names(spec: DatasetSpec, root: Path, folders: Iterable[str]) -> Mapping[str, str]:
    """Return class names by class folder."""
    match spec.layout:
        case Layout.CLASS_FOLDERS:
            return {folder: spec.renames.get(folder, folder) for folder in folders}
        case Layout.IMAGENET_NUMBERED:
            names = _names_by_wnid(root / spec.folder / CLASS_NAMES)
            wnids = enumerate(imagenet_names())
            return {str(label): names[wnid] for label, wnid in wnids if wnid in names}
        case _:
            return _names_by_wnid(root / spec.folder / CLASS_NAMES)


def _names_by_wnid(file: Path) -> Mapping[str, str]:
    """Return ImageNet's class names by WordNet id, from the file if it exists, or else CLIP's."""
    if not file.is_file():
        return imagenet_names()
    names: dict[str, str] = {}
    for where, (wnid, name) in read_lines(file, _WNID_AND_NAME, "'wnid name'"):
        if wnid in names:
            raise BadData(f"{where} names '{wnid}' again: download it again")
        names[wnid] = name
    return names
