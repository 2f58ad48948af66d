"""Check data sets on disk: counts, class folders, every listed image; all problems at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pd_core.core.errors import PdError
from pd_core.core.hooks import OnProgress
from pd_core.core.names import printable
from pd_core.data.acquire.image_files import check_lists
from pd_core.data.acquire.overview import Overview
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, OwnImages
from pd_core.data.catalog.class_names import unicode_forms
from pd_core.data.catalog.copies import find_copies
from pd_core.data.catalog.fingerprint import Fingerprint
from pd_core.data.catalog.own import left_out, own_unlabelled
from pd_core.data.catalog.own import notes as own_notes
from pd_core.data.catalog.readers import (
    LabelSource,
    count_problem,
    image_root,
    label_source,
    read_splits,
    sources,
)
from pd_core.data.loading.splits import Splits

CheckClasses = Callable[[Sequence[str]], Sequence[str]]
"""Check of class names that needs models: returns notes, raises a PdError."""


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
        name: Name of the data set.
        source: What its lists were read from.
        counts: Number of `classes`, and of images in `train`, `val` and `test`; empty if the lists
            are unreadable.
        problems: One line each.
        notes: A line each about what is unusual in the user's own images.
        overview: Of the user's own images, if their lists are readable.
    """

    name: str
    source: LabelSource
    counts: Mapping[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    overview: Overview | None = None

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems


def verify(
    spec: DatasetSpec,
    root: Path,
    *,
    full: bool = False,
    workers: int | None = None,
    recorded: Fingerprint | None = None,
    check_classes: CheckClasses | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Compare a data set with its row: counts, class folders, every listed image.

    The first bytes of every image are read, which detects a web page saved in its place; only
    `full` detects a truncated image.

    Args:
        spec: The data set.
        root: Data root; not needed for embedded data sets.
        full: Decode every image.
        workers: Processes that decode; None for one per core.
        recorded: Expected fingerprint of an embedded data set; others are not compared.
        check_classes: Check of the user's own class names.
        on_progress: Called with images done and total images.
    """
    processes = (workers or os.cpu_count() or 1) if full else 0
    if spec.layout is Layout.EMBEDDED:
        report = _check_embedded(spec, root, recorded)
    elif spec.own is not None:
        report = _check_own(spec, spec.own, root, processes, check_classes, on_progress)
    else:
        report = _check_files(spec, root, processes, on_progress)
    problems, notes = (tuple(map(printable, lines)) for lines in (report.problems, report.notes))
    return replace(report, problems=problems, notes=notes)


def state_of(spec: DatasetSpec, root: Path) -> str:
    """Return the state of a data set on disk, in words; images are not looked at."""
    if spec.layout is Layout.EMBEDDED:
        return "embedded"
    if not (root / spec.folder).is_dir():
        return "absent"
    if not all(folder.is_dir() for folder in _image_folders(spec, root)):
        return "incomplete: no image folder"
    try:
        is_complete = all(source.exists() for source in sources(spec, root))
    except PdError:  # of an own list
        return "invalid labels"
    return "there" if is_complete else "incomplete: no labels"


def _check_embedded(spec: DatasetSpec, root: Path, recorded: Fingerprint | None) -> Report:
    """Build the data set and compare it with its fingerprint."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder)
        splits = read_splits(spec, built)
        if recorded is not None:
            try:
                fingerprint.check(recorded, [image_root(spec, built)], built, name=spec.name)
            except PdError as error:
                problems.append(str(error))
    return Report(spec.name, label_source(spec, root), _counts(splits), tuple(problems))


def _check_files(
    spec: DatasetSpec, root: Path, workers: int, on_progress: OnProgress | None
) -> Report:
    """Check a data set of the catalogue."""
    source = label_source(spec, root)
    try:
        # Counts are compared below, together with the images.
        splits = read_splits(replace(spec, train=None, val=None, test=None), root)
    except PdError as error:
        return Report(spec.name, source, {}, (str(error),))
    problems = [count_problem(spec, splits, source)]
    problems += check_lists(
        image_root(spec, root), splits, workers=workers, on_progress=on_progress
    )
    return Report(spec.name, source, _counts(splits), tuple(filter(None, problems)))


def _check_own(
    spec: DatasetSpec,
    own: OwnImages,
    root: Path,
    workers: int,
    check_classes: CheckClasses | None,
    on_progress: OnProgress | None,
) -> Report:
    """Check the user's own images, in all four lists."""
    source, folder = label_source(spec, root), image_root(spec, root)
    try:
        splits, unlabelled = read_splits(spec, root), own_unlabelled(own, root)
    except PdError as error:
        return Report(spec.name, source, {}, (str(error),))
    copies = find_copies(splits, unlabelled, folder)
    problems = copies.conflicts()
    notes = [*own_notes(own, root), *unicode_forms(splits), *copies.notes()]
    try:
        notes += check_classes(splits.class_names) if check_classes else ()
    except PdError as error:
        problems.append(str(error))
    problems += check_lists(folder, splits, unlabelled, workers=workers, on_progress=on_progress)
    overview = Overview.of(splits, unlabelled, left_out(own, root))
    return Report(spec.name, source, _counts(splits), tuple(problems), tuple(notes), overview)


def _image_folders(spec: DatasetSpec, root: Path) -> list[Path]:
    return [image_root(spec, root) / part for part in spec.parts or (".",)]


def _counts(splits: Splits) -> dict[str, int]:
    sizes = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
    return {"classes": len(splits.class_names), **sizes}
