"""Stage `prepare`: few-shot split and unlabelled images of a data set."""

import random
from collections.abc import Iterable
from pathlib import Path

from pd_core.core.atomic import write_folder
from pd_core.core.hooks import NO_HOOKS, OnNote, OnProgress
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import (
    DatasetSpec,
    Layout,
    OwnImages,
    PrepareConfig,
    dataset_spec,
    own_spec,
)
from pd_core.data.catalog.class_names import unicode_forms
from pd_core.data.catalog.copies import Copies, find_copies
from pd_core.data.catalog.own import notes, own_unlabelled
from pd_core.data.catalog.own_added import added_items, added_rows
from pd_core.data.catalog.readers import image_root, read_splits, sources
from pd_core.data.loading.prepared import write_prepared
from pd_core.data.loading.splits import (
    Item,
    Items,
    Protocol,
    Splits,
    base_and_novel,
    base_count,
    few_shot,
    few_shot_split,
)


def run(
    dataset: str,
    out: Path,
    config: PrepareConfig,
    *,
    data_root: Path,
    seed: int,
    fingerprint: Path | None = None,
    rehearsed: DatasetSpec | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote = NO_HOOKS.on_note,
) -> None:
    """Write `split.json`, `unlabelled.json`, their checksums and, if embedded, the images.

    The unlabelled list is the complete train split of all classes (paper, section 3.3), and the
    folder of unlabelled images if there is one, sorted by path.

    Args:
        dataset: Name in the catalogue, or of the user's own images.
        out: Output folder.
        config: Options of the split and the lists.
        data_root: Folder of all data sets.
        seed: Seed of the draw.
        fingerprint: Expected fingerprint of the images, here and in later stages; None to skip the
            comparison.
        rehearsed: Row of a smaller copy of the data set, in place of the catalogue's.
        on_progress: Called with images done and total images.
        on_note: Called with what is left out of the user's own images, and their copies.

    Raises:
        UnknownName: There is no such data set.
        MissingFile: A file of the data set, or the fingerprint, is missing.
        BadData: A file of the data set is corrupt, or differs from the fingerprint; or an own image
            has two labels.
        BadParams: No class has that many images.
    """
    spec = rehearsed or spec_of(dataset, config.own)
    embedded = spec.layout is Layout.EMBEDDED
    with write_folder(out) as folder:
        root = folder if embedded else data_root
        if config.own is not None:
            for line in notes(config.own, root):
                on_note(f"{dataset}: {line}")
        if fingerprint is not None and not embedded:
            recorded = prints.read(fingerprint, dataset)
            _check(recorded, spec, root, on_progress)
            prints.write(folder / prints.FILE, recorded)
        splits = read_splits(spec, root, on_progress=on_progress)
        unlabelled, copies, added = _own(spec, root, splits, on_note)
        drawn: Items = ()
        drawn_val: Items = ()
        if splits.train:  # ImageNet's variants have test images only
            drawn, drawn_val = few_shot_split(
                splits,
                shots=config.shots,
                val_shots=config.val_shots,
                protocol=config.protocol,
                rng=random.Random(seed),
            )
        classes = splits.class_names
        split = {
            "dataset": dataset,
            "title": spec.title,
            "classes": classes,
            "base_classes": base_count(len(classes)),
            "protocol": config.protocol,
            "shots": config.shots,
            "seed": seed,
            "images": image_root(spec, root).relative_to(root).as_posix(),
            "few_shot": _pairs((*drawn, *_taught(added, config.protocol, len(classes)))),
            "few_shot_val": _pairs(drawn_val),
            "val": _pairs(splits.val),
            "test": _pairs(splits.test),
        }
        write_prepared(folder, split, sorted(_distilled(splits, unlabelled, copies, config, seed)))


def check_pictures(prepared: Path, dataset: str, *, own: OwnImages | None, data_root: Path) -> None:
    """Compare the images with the fingerprint in a prepared data set, if any.

    Args:
        prepared: Output folder of the stage `prepare`.
        dataset: Name of the data set.
        own: Locations of the user's own images, if it is theirs.
        data_root: Folder of all data sets.

    Raises:
        MissingFile: The images are missing.
        BadData: The images differ.
    """
    file = prepared / prints.FILE
    if file.is_file():
        _check(prints.read(file, dataset), spec_of(dataset, own), data_root)


def spec_of(dataset: str, own: OwnImages | None) -> DatasetSpec:
    """Return the row of a data set, from the catalogue or for the user's own images."""
    return dataset_spec(dataset) if own is None else own_spec(dataset, own)


def _check(
    recorded: prints.Fingerprint,
    spec: DatasetSpec,
    root: Path,
    on_progress: OnProgress | None = None,
) -> None:
    files, base = sources(spec, root), root / spec.folder
    prints.check(recorded, files, base, name=spec.name, on_progress=on_progress)


def _own(
    spec: DatasetSpec, root: Path, splits: Splits, on_note: OnNote
) -> tuple[tuple[str, ...], Copies, Items]:
    """Return the user's unlabelled images, the copies among all, and images with added labels.

    What is unusual is noted.
    """
    if spec.own is None:
        return (), Copies(), ()
    unlabelled = own_unlabelled(spec.own, root)
    copies = find_copies(splits, unlabelled, image_root(spec, root))
    copies.check()
    for line in (*unicode_forms(splits), *copies.notes()):
        on_note(f"{spec.name}: {line}")
    added = added_items(added_rows(spec.own, root), splits, unlabelled, copies)
    return unlabelled, copies, added


def _taught(items: Items, protocol: Protocol, num_classes: int) -> Items:
    """Leave out images of novel classes, of which the teacher gets no labels."""
    is_halved = protocol is Protocol.BASE_TO_NOVEL
    return base_and_novel(items, num_classes)[0] if is_halved else items


def _distilled(
    splits: Splits, unlabelled: Iterable[str], copies: Copies, config: PrepareConfig, seed: int
) -> set[str]:
    """Return the paths of the images to distil on."""
    if config.transductive:
        return {item.path for item in splits.test}
    train = splits.train
    if config.unlabelled_per_class is not None:
        # A generator of its own, so that the few-shot draw stays the same.
        train = few_shot(train, config.unlabelled_per_class, random.Random(seed))
    # No training may see these, even if the user put copies into other folders.
    held_out = {item.path for item in (*splits.val, *splits.test)}
    paths = {*(item.path for item in train), *unlabelled}
    return paths - held_out - copies.of(held_out)


def _pairs(items: Iterable[Item]) -> list[tuple[str, int]]:
    return [(item.path, item.label) for item in items]
