"""Stage `prepare`: draw the few-shot split of a data set and list the unlabelled pictures."""

import random
from collections.abc import Iterable
from pathlib import Path

from pd_core.artifacts import write_folder, write_json
from pd_core.data.catalogue import Layout, dataset_spec
from pd_core.data.readers import image_root, read_splits
from pd_core.data.splits import Item, Protocol, base_count, few_shot, few_shot_split


def run(
    dataset: str,
    out: Path,
    *,
    data_root: Path,
    protocol: Protocol,
    shots: int,
    val_shots: int,
    unlabelled_per_class: int | None = None,
    seed: int,
) -> None:
    """Write `split.json`, `unlabelled.json` and, for an embedded data set, its pictures.

    The unlabelled list is the whole train split of all classes (paper, section 3.3), in an order
    that tells nothing about labels.

    Args:
        dataset: a name of the catalogue.
        out: folder to write into.
        data_root: folder that holds the photo data sets.
        protocol: which classes the teacher may see labels of.
        shots: labelled training images per class.
        val_shots: labelled validation images per class, at most `shots`.
        unlabelled_per_class: how many training images of each class are listed; None: all.
        seed: of the draw.

    Raises:
        UnknownName: there is no such data set.
        MissingFile: its files are not where they should be.
        BadData: its files are not what they should be.
        BadParams: no class has that many images.
    """
    spec = dataset_spec(dataset)
    with write_folder(out) as folder:
        root = folder if spec.layout is Layout.EMBEDDED else data_root
        splits = read_splits(spec, root)
        drawn, drawn_val = few_shot_split(
            splits, shots=shots, val_shots=val_shots, protocol=protocol, rng=random.Random(seed)
        )
        images = image_root(spec, root)
        classes = splits.class_names
        write_json(
            folder / "split.json",
            {
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
            },
        )
        train = splits.train
        if unlabelled_per_class is not None:
            # With numbers of its own, so that the few labelled images stay the same.
            train = few_shot(train, unlabelled_per_class, random.Random(seed))
        write_json(folder / "unlabelled.json", sorted(item.path for item in train))


def _pairs(items: Iterable[Item]) -> list[tuple[str, int]]:
    return [(item.path, item.label) for item in items]
