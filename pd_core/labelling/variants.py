"""Prepared data sets with other lists: more labels, fewer labels, fewer unlabelled images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pd_core.core.atomic import write_folder
from pd_core.data.loading.prepared import (
    Labelled,
    image_root,
    read_split,
    read_unlabelled,
    write_prepared,
)


def write_variant(
    prepared: Path,
    out: Path,
    *,
    data_root: Path,
    few_shot: Labelled,
    unlabelled: Iterable[str] | None = None,
    test: Labelled | None = None,
) -> None:
    """Write a copy of a prepared data set with other lists; its images stay where they are.

    Args:
        prepared: output folder of the stage `prepare`.
        out: folder to write.
        data_root: folder of the photo data sets.
        few_shot: training images of the teacher.
        unlabelled: images to distil on; None for the same.
        test: test images; None for the same.
    """
    content = read_split(prepared)
    content["images"] = str(image_root(prepared, data_root=data_root).resolve())
    content["few_shot"] = list(few_shot)
    if test is not None:
        content["test"] = list(test)
    with write_folder(out) as folder:
        paths = read_unlabelled(prepared) if unlabelled is None else unlabelled
        write_prepared(folder, content, paths)
