"""Check a data set on disk: its lists, its folders, its pictures; all that is wrong at once."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pd_core.data import fingerprint, inspection, presence
from pd_core.data.catalogue import DatasetSpec, Layout
from pd_core.data.class_folders import class_folders
from pd_core.data.fingerprint import Fingerprint
from pd_core.data.inspection import Finding
from pd_core.data.readers import (
    Road,
    count_problem,
    image_root,
    label_road,
    read_splits,
    sources,
)
from pd_core.data.splits import Items, Splits
from pd_core.errors import PdError

OnProgress = Callable[[int, int], None]

# Layouts whose class folders are the labels, wherever there is no split file.
_BY_FOLDER = (
    Layout.CLASS_FOLDERS,
    Layout.IMAGENET,
    Layout.IMAGENET_TEST,
    Layout.IMAGENET_NUMBERED,
)
_TITLES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        name: The data set.
        road: What its lists come from.
        counts: Found classes and pictures: `classes`, `train`, `val`, `test`; empty if the lists
            could not be read.
        problems: What is wrong, one line each.
    """

    name: str
    road: Road
    counts: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    spec: DatasetSpec,
    root: Path,
    *,
    full: bool = False,
    workers: int | None = None,
    recorded: Fingerprint | None = None,
    on_progress: OnProgress | None = None,
) -> Verdict:
    """Check a data set against its row: counts, class folders, every listed picture.

    The first bytes of every picture are read, so that a web page saved in its place is found;
    only `full` finds a picture that breaks off.

    Args:
        spec: The data set.
        root: Folder that holds all data sets. Embedded ones do not need it.
        full: Whether to decode every picture.
        workers: Processes that decode; None for one a core.
        recorded: What an embedded data set should be; others are not compared.
        on_progress: Gets the number of pictures looked at so far, and of all.
    """
    processes = (workers or os.cpu_count() or 1) if full else 0
    if spec.layout is Layout.EMBEDDED:
        counts, problems = _embedded(spec, recorded)
    else:
        counts, problems = _on_disk(spec, root, processes, on_progress)
    return Verdict(spec.name, label_road(spec, root), counts, tuple(map(_printable, problems)))


def state_of(spec: DatasetSpec, root: Path) -> str:
    """Say what is there of a data set, without looking at its pictures."""
    if spec.layout is Layout.EMBEDDED:
        return "embedded"
    if not (root / spec.folder).is_dir():
        return "absent"
    if not all(folder.is_dir() for folder in _picture_folders(spec, root)):
        return "incomplete: no image folder"
    if not all(source.exists() for source in sources(spec, root)):
        return "incomplete: no labels"
    return "there"


def _embedded(spec: DatasetSpec, recorded: Fingerprint | None) -> tuple[dict[str, int], list[str]]:
    """Build the data set anew and compare it with what it was when its fingerprint was made."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        splits = read_splits(spec, root)
        problems = []
        if recorded is not None:
            try:
                fingerprint.check(recorded, [image_root(spec, root)], root, name=spec.name)
            except PdError as error:
                problems.append(str(error))
    return _counts(splits), problems


def _on_disk(
    spec: DatasetSpec, root: Path, processes: int, on_progress: OnProgress | None
) -> tuple[dict[str, int], list[str]]:
    road = label_road(spec, root)
    problems = _folder_problems(spec, root) if road is Road.ANNOTATIONS else []
    try:
        # Counts are compared below, where pictures are looked at as well.
        splits = read_splits(replace(spec, train=None, val=None, test=None), root)
    except PdError as error:
        return {}, problems or [str(error)]
    pictures = image_root(spec, root)
    class_of = {item.path: item.name for _, items in _lists(splits) for item in items}
    found = presence.find(pictures, class_of)
    problems += _count_problems(spec, splits, road)
    problems += _empty_classes(splits)
    problems += _shared(splits, found.real)
    problems += found.problems
    problems += _look_into(pictures, found.files, processes, on_progress)
    return _counts(splits), problems


def _picture_folders(spec: DatasetSpec, root: Path) -> list[Path]:
    return [image_root(spec, root) / part for part in spec.parts or (".",)]


def _folder_problems(spec: DatasetSpec, root: Path) -> list[str]:
    """Compare class folders where they are the labels; the reader would stop at the first."""
    if spec.layout not in _BY_FOLDER or not all(map(Path.is_dir, _picture_folders(spec, root))):
        return []
    known = class_folders(spec)
    problems = []
    for part in spec.parts or ("",):
        start = f"{part}/" if part else ""
        problems += presence.compare_folders(
            image_root(spec, root),
            part,
            [name.removeprefix(start) for name in known if name.startswith(start)],
            num_classes=spec.num_classes,
            ignored=spec.ignored,
        )
    return problems


def _lists(splits: Splits) -> tuple[tuple[str, Items], ...]:
    return (("train", splits.train), ("val", splits.val), ("test", splits.test))


def _counts(splits: Splits) -> dict[str, int]:
    sizes = {name: len(items) for name, items in _lists(splits)}
    return {"classes": len(splits.class_names), **sizes}


def _count_problems(spec: DatasetSpec, splits: Splits, road: Road) -> list[str]:
    problem = count_problem(spec, splits, road)
    if not problem:
        return []
    by_folder = road is Road.ANNOTATIONS and spec.layout in _BY_FOLDER
    return [problem + (_odd_folder(splits) if by_folder else "")]


def _odd_folder(splits: Splits) -> str:
    """Name the class folder that has more or fewer pictures than all others, if there is one."""
    folders = Counter(item.path.rpartition("/")[0] for _, items in _lists(splits) for item in items)
    sizes = Counter(folders.values())
    (usual, _), *others = sizes.most_common()
    match others:
        case [(odd, 1)] if len(folders) > 2:
            name = next(folder for folder, size in folders.items() if size == odd)
            return f"; class folder '{name}' has {odd}, all others {usual}"
        case _:
            return ""


def _empty_classes(splits: Splits) -> list[str]:
    """Name classes that a list has no picture of; a list without any is the row's business."""
    problems = []
    for name, items in _lists(splits):
        seen = {item.name for item in items}
        absent = [label for label in splits.class_names if seen and label not in seen]
        if absent:
            who = f"class '{absent[0]}' has"
            if len(absent) > 1:
                who = f"{len(absent)} classes, '{absent[0]}' the first, have"
            problems.append(f"{who} no {_TITLES[name]} picture: complete the list")
    return problems


def _shared(splits: Splits, real: Mapping[str, str]) -> list[str]:
    """Find pictures that are in two lists by way of a link; the reader refuses all others."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, items in _lists(splits):
        mine = {real.get(item.path, item.path): item.path for item in items}
        for file, path in mine.items():
            if owner.setdefault(file, name) != name:
                shared.setdefault((owner[file], name), []).append(path)
    return [
        f"{_several(paths)} is in both {_TITLES[one]} and {_TITLES[other]}: keep it in one list"
        for (one, other), paths in shared.items()
    ]


def _look_into(
    root: Path, files: list[str], processes: int, on_progress: OnProgress | None
) -> list[str]:
    """Read the first bytes of pictures and, with processes to do it, decode them."""
    if processes:
        found = inspection.decode_all(root, files, workers=processes, on_progress=on_progress)
        return [f"'{path}' is {what}: replace it" for path, what in found]
    return _grouped(inspection.read_heads(root, files, on_progress=on_progress))


def _grouped(findings: list[Finding]) -> list[str]:
    """One line for each kind of thing that is no picture."""
    kinds: dict[str, list[Finding]] = {}
    for path, what in findings:
        kinds.setdefault(what.partition(" (")[0], []).append((path, what))
    return [
        f"{_several([path for path, _ in mine])} is {mine[0][1]}: replace it"
        for mine in kinds.values()
    ]


def _several(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return f"'{paths[0]}'"
    return f"each of {len(paths)} pictures, the first of which is '{paths[0]}',"


def _printable(text: str) -> str:
    """Keep a problem on one line, whatever is in a file's name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
