"""Stage `prepare`: draw the few-shot split of a data set and list the unlabelled pictures."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from pd_core.core.atomic import write_folder
from pd_core.data.catalog import custom as own_images
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, dataset_spec, own_spec
from pd_core.data.catalog.custom import OwnImages
from pd_core.data.catalog.fingerprint import OnProgress
from pd_core.data.catalog.readers import image_root, read_splits, sources
from pd_core.data.loading.prepared import write_prepared
from pd_core.data.loading.splits import (
    Item,
    Items,
    Protocol,
    Splits,
    base_count,
    few_shot,
    few_shot_split,
)

FINGERPRINT = "fingerprint.json"
"""What the pictures have to be whenever a stage uses them; not there for embedded ones."""


class Own(TypedDict):
    """Where the user's own pictures are: the fields of `OwnImages`."""

    labelled: str
    unlabelled: str | None
    test: str | None


def run(
    dataset: str,
    out: Path,
    *,
    data_root: Path,
    own: Own | None = None,
    fingerprint: Path | None = None,
    protocol: Protocol,
    shots: int,
    val_shots: int,
    unlabelled_per_class: int | None = None,
    transductive: bool = False,
    seed: int,
    on_progress: OnProgress | None = None,
) -> None:
    """Write `split.json`, `unlabelled.json`, their checksums and, if embedded, the pictures.

    The unlabelled list is the whole train split of all classes (paper, section 3.3), and the folder
    of unlabelled pictures if there is one, in an order that tells nothing about labels.

    Args:
        dataset: a name of the catalogue, or of the user's own pictures.
        out: folder to write into.
        data_root: folder that holds the photo data sets.
        own: where the user's own pictures are; None for a data set of the catalogue.
        fingerprint: of the pictures, which are compared with it before they are used, here and in
            later stages; None for no comparison.
        protocol: which classes the teacher may see labels of.
        shots: labelled training images per class.
        val_shots: labelled validation images per class, at most `shots`.
        unlabelled_per_class: how many training images of each class are listed; None: all.
        transductive: list the test images instead, as the published code does for ImageNet's
            variants, which have no others; the student then sees them, without labels, beforehand.
        seed: of the draw.
        on_progress: called with pictures done and pictures in all, where pictures are looked at.

    Raises:
        UnknownName: there is no such data set.
        MissingFile: its files are not where they should be, or there is no fingerprint.
        BadData: its files are not what they should be, or not those of the fingerprint.
        BadParams: no class has that many images.
    """
    spec = spec_of(dataset, own)
    brings_pictures = spec.layout is Layout.EMBEDDED
    with write_folder(out) as folder:
        root = folder if brings_pictures else data_root
        if fingerprint is not None and not brings_pictures:
            recorded = prints.read(fingerprint, dataset)
            prints.check(
                recorded,
                sources(spec, root),
                root / spec.folder,
                name=dataset,
                on_progress=on_progress,
            )
            prints.write(folder / FINGERPRINT, recorded)
        splits = read_splits(spec, root, on_progress=on_progress)
        drawn: Items = ()
        drawn_val: Items = ()
        if splits.train:  # ImageNet's variants are there to test only
            drawn, drawn_val = few_shot_split(
                splits, shots=shots, val_shots=val_shots, protocol=protocol, rng=random.Random(seed)
            )
        images = image_root(spec, root)
        classes = splits.class_names
        split = {
            "dataset": dataset,
            "title": spec.title,
            "classes": classes,
            "base_classes": base_count(len(classes)),
            "protocol": protocol,
            "shots": shots,
            "seed": seed,
            "images": images.relative_to(root).as_posix(),
            "few_shot": _pairs(drawn),
            "few_shot_val": _pairs(drawn_val),
            "val": _pairs(splits.val),
            "test": _pairs(splits.test),
        }
        train = splits.train
        if unlabelled_per_class is not None:
            # With numbers of its own, so that the few labelled images stay the same.
            train = few_shot(train, unlabelled_per_class, random.Random(seed))
        paths = {item.path for item in train}
        if spec.own is not None:
            paths |= set(own_images.unlabelled(spec.own, root))
        paths -= _held_out(splits)
        if transductive:
            paths = {item.path for item in splits.test}
        write_prepared(folder, split, sorted(paths))


def check_pictures(prepared: Path, dataset: str, *, own: Own | None, data_root: Path) -> None:
    """Compare the pictures with the fingerprint that a prepared data set was made by, if any.

    Args:
        prepared: folder written by the stage `prepare`.
        dataset: its data set.
        own: where the user's own pictures are, if it is theirs.
        data_root: folder that holds the photo data sets.

    Raises:
        MissingFile: the pictures are not there.
        BadData: they are others.
    """
    file = prepared / FINGERPRINT
    if file.is_file():
        recorded = prints.read(file, dataset)
        spec = spec_of(dataset, own)
        base = data_root / spec.folder
        prints.check(recorded, sources(spec, data_root), base, name=dataset)


def spec_of(dataset: str, own: Own | None) -> DatasetSpec:
    """Return a data set's row: the catalogue's, or one for the user's own pictures."""
    return dataset_spec(dataset) if own is None else own_spec(dataset, OwnImages(**own))


def _held_out(splits: Splits) -> set[str]:
    """Pictures that no training may see, wherever else the user put them."""
    return {item.path for item in (*splits.val, *splits.test)}


def _pairs(items: Iterable[Item]) -> list[tuple[str, int]]:
    return [(item.path, item.label) for item in items]
