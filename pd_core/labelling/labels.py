"""Labels of unlabelled images, taken in from a list."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from pd_core.core.artifacts import file_hash, write_text
from pd_core.core.errors import BadParams
from pd_core.data.catalog.catalogue import AddedLabels
from pd_core.data.catalog.copies import find_copies
from pd_core.data.catalog.own import own_unlabelled, read_own
from pd_core.data.catalog.own_added import added_items
from pd_core.data.catalog.own_lists import Row, read_list
from pd_core.pipeline.project import set_added
from pd_core.pipeline.stages.params import load_params

FOLDER = Path("labels")
"""Folder of the lists of added labels in the repository, one a data set, to be committed."""


@dataclass(frozen=True)
class Taken:
    """Labels that were taken in.

    Attributes:
        file: list of all added labels.
        new: number of those that were not in it before.
        total: number of all.
    """

    file: Path
    new: int
    total: int


def take_labels(params_file: Path, data_root: Path, dataset: str, given: Path) -> Taken:
    """Add the labels of a list to those of a data set of the user's own.

    They are written to `labels/<data set>.csv`, and its hash to `params.yaml`, so that the stages
    run again. The stage `prepare` gives them to the teacher beside the labels that it draws, which
    stay the same, as the test images do.

    Args:
        params_file: the `params.yaml`.
        data_root: folder of all images.
        dataset: name of the data set.
        given: list with columns of paths and labels; paths are below the folder of the images.

    Raises:
        UnknownName: there is no such data set or class.
        BadParams: the data set is in the catalogue, whose labels are known.
        MissingFile: the list, or an image, is missing.
        BadData: a label is missing, contradicts another one, or is of a test image.
    """
    params = load_params(params_file)
    own = params.for_dataset(dataset).prepare.own
    if own is None:
        raise BadParams(
            f"all labels of '{dataset}' are known, as it is in the catalogue: raise prepare.shots"
        )
    file = Path(params.profile.root) / FOLDER / f"{dataset}.csv"
    folder = data_root / own.folder
    before = read_list(params_file.parent / file, "train", folder).rows if own.added else []
    splits, unlabelled = read_own(own, data_root), own_unlabelled(own, data_root)
    rows = [*before, *read_list(given, "train", folder).rows]
    items = added_items(rows, splits, unlabelled, find_copies(splits, unlabelled, folder))
    _write(params_file.parent / file, [Row(item.path, item.name, "train") for item in items])
    sha256 = file_hash(params_file.parent / file)
    set_added(params_file, dataset, AddedLabels(path=file.as_posix(), sha256=sha256))
    return Taken(file, len(items) - len({row.path for row in before}), len(items))


def _write(file: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    writer.writerows((row.path, row.label) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())
