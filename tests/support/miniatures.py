"""Write the fifteen public data sets to disk as their documentation lays them out, only smaller.

    row = miniature("oxford_pets")     # the catalogue's row, with three classes and few pictures
    write(row, root)                   # with the original annotations
    write(row, root, split_file=True)  # with the community's split file in their place
    read_splits(row, root)

What is written has exactly the counts of the row that is given, so the catalogue's own row gives a
tree of full size. Pictures are tiny, each class has a colour of its own, and no two files are
linked: damaging one leaves the others as they are.

Class names are given here as the community has them; nothing is computed by what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from pd_core.data.catalog.annotations import class_folders, imagenet_names
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, PrepareConfig, dataset_spec
from pd_core.data.loading.splits import Protocol

PHOTOS = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
NAMES = (*PHOTOS, *VARIANTS)
WITH_SPLIT_FILE = tuple(name for name in PHOTOS if dataset_spec(name).split_file)

# Class names as original annotations have them, and what the community makes of them.
_NAMED: dict[Layout, list[tuple[str, str]]] = {
    Layout.PETS: [
        ("Abyssinian", "abyssinian"),
        ("american_bulldog", "american_bulldog"),
        ("Maine_Coon", "maine_coon"),
    ],
    Layout.CARS: [
        ("AM General Hummer SUV 2000", "2000 AM General Hummer SUV"),
        ("Ram C/V Cargo Van Minivan 2012", "2012 Ram C/V Cargo Van Minivan"),
        ("smart fortwo Convertible 2012", "2012 smart fortwo Convertible"),
    ],
    Layout.FLOWERS: [
        ("pink primrose", "pink primrose"),
        ("hard-leaved pocket orchid", "hard-leaved pocket orchid"),
        ("colt's foot", "colt's foot"),
    ],
    Layout.AIRCRAFT: [
        ("707-320", "707-320"),
        ("BAE 146-200", "BAE 146-200"),
        ("F-16A/B", "F-16A/B"),
    ],
    Layout.UCF101: [
        ("ApplyEyeMakeup", "Apply_Eye_Makeup"),
        ("HandstandPushups", "Handstand_Pushups"),
        ("YoYo", "Yo_Yo"),
    ],
    Layout.SUN397: [
        ("/a/abbey", "abbey"),
        ("/a/apartment_building/outdoor", "outdoor apartment_building"),
        ("/c/car_interior/backseat", "backseat car_interior"),
    ],
}


@dataclass(frozen=True)
class Picture:
    """A picture of a data set that is written.

    Attributes:
        path: Below the image root.
        label: From 0.
        name: The class name of the community.
        raw: The class name of the original annotations.
        split: "train", "val" or "test".
    """

    path: str
    label: int
    name: str
    raw: str
    split: str

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The same without the suffix."""
        return self.file.rpartition(".")[0]


def prepare_config(**given: Any) -> PrepareConfig:
    """Return the block `prepare` of a small data set, some of its values given."""
    values = {
        "own": None, "protocol": Protocol.BASE_TO_NOVEL, "shots": 2, "val_shots": 1,
        "unlabelled_per_class": None, "transductive": False,
    }  # fmt: skip
    return PrepareConfig.model_validate({**values, **given})


def miniature(name: str, *, classes: int = 3) -> DatasetSpec:
    """Return a row of few classes.

    Of each class there are 4 train, 1 validation and 3 test pictures; 5, 2 and 3 where all three
    lists are drawn from one; 4 and 3 of ImageNet; 3 test pictures of its variants.
    """
    row = dataset_spec(name)
    match row.layout:
        case Layout.CLASS_FOLDERS | Layout.FLOWERS:
            sizes = (5, 2, 3)
        case Layout.IMAGENET:
            sizes = (4, 0, 3)
        case Layout.IMAGENET_TEST | Layout.IMAGENET_NUMBERED:
            sizes = (0, 0, 3)
        case _:
            sizes = (4, 1, 3)
    train, val, test = (classes * size for size in sizes)
    return replace(row, num_classes=classes, train=train, val=val, test=test)


def write(
    row: DatasetSpec, root: Path, *, split_file: bool = False, pixels: tuple[int, int] | None = None
) -> tuple[Picture, ...]:
    """Write a data set below a data root.

    Things that lie beside the pictures in the real archives, and are none, are written as well.

    Args:
        row: One with all counts, spread evenly over its classes.
        root: The data root.
        split_file: Whether to write the community's lists in place of the original annotations.
        pixels: Width and height of the pictures, which have no colours then.

    Returns:
        What was written.
    """
    pictures = tuple(_pictures(row))
    folder = root / row.folder
    images = folder / row.image_dir
    for parent in {(images / picture.path).parent for picture in pictures}:
        parent.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        path = images / picture.path
        suffix = path.suffix.lower()
        path.write_bytes(
            _noise(suffix, number % 4, pixels)
            if pixels
            else _encoded(suffix, picture.label, number % 4)
        )
    _write_strangers(row, images)
    if split_file:
        _write_json(folder / str(row.split_file), as_lists(pictures))
    elif row.layout in _WRITERS:
        _WRITERS[row.layout](folder, pictures)
    return pictures


def as_lists(pictures: tuple[Picture, ...]) -> dict[str, list[list[Any]]]:
    """Return the content of the community's split file."""
    return {
        split: [[p.path, p.label, p.name] for p in pictures if p.split == split]
        for split in ("train", "val", "test")
    }


def classes_of(row: DatasetSpec) -> list[tuple[str, str]]:
    """Return the classes, by label, as original annotations have them and as the community does."""
    count = row.num_classes
    match row.layout:
        case Layout.CLASS_FOLDERS:
            folders = class_folders(row)[:count]
            return [(folder, row.renames.get(folder, folder)) for folder in folders]
        case Layout.IMAGENET:
            return list(imagenet_names().items())[:count]
        case Layout.IMAGENET_TEST:
            return [(wnid, imagenet_names()[wnid]) for wnid in class_folders(row)[:count]]
        case Layout.IMAGENET_NUMBERED:
            return [(str(label), name) for label, name in enumerate(imagenet_names().values())][
                :count
            ]
        case Layout.SUN397 if count > 3:
            folders = class_folders(row)[:count]
            return [(f"/{path}", " ".join(path.split("/")[:0:-1])) for path in folders]
        case Layout.UCF101 if count > 3:
            return [(name.replace("_", ""), name) for name in class_folders(row)[:count]]
        case layout:
            made_up = [(f"Kind{label} 2000", f"2000 Kind{label}") for label in range(3, count)]
            if layout is not Layout.CARS:
                made_up = [(f"kind{label}", f"kind{label}") for label in range(3, count)]
            return [*_NAMED[layout][:count], *made_up]


def _pictures(row: DatasetSpec) -> Iterator[Picture]:
    path_of = _PATHS[row.layout]
    counts = {"train": row.train or 0, "val": row.val or 0, "test": row.test or 0}
    number = dict.fromkeys(("all", *counts), 0)
    for label, (raw, name) in enumerate(classes_of(row)):
        for split, count in counts.items():
            share, rest = divmod(count, row.num_classes)
            for _ in range(share + (label < rest)):
                number["all"] += 1
                number["test" if split == "test" else "train"] += 1
                yield Picture(path_of(raw, split, number), label, name, raw, split)


def _half(split: str) -> str:
    return "test" if split == "test" else "train"


_PATHS: dict[Layout, Callable[[str, str, dict[str, int]], str]] = {
    Layout.CLASS_FOLDERS: lambda raw, _, n: f"{raw}/image_{n['all']:04}.jpg",
    Layout.IMAGENET: lambda raw, split, n: (
        f"val/{raw}/ILSVRC2012_val_{n['test']:08}.JPEG"
        if split == "test"
        else f"train/{raw}/{raw}_{n['train']}.JPEG"
    ),
    Layout.IMAGENET_TEST: lambda raw, _, n: f"{raw}/sketch_{n['all']}.JPEG",
    Layout.IMAGENET_NUMBERED: lambda raw, _, n: f"{raw}/{n['all']:040x}.jpeg",
    Layout.PETS: lambda raw, _, n: f"{raw}_{n['all']}.jpg",
    Layout.CARS: lambda _, split, n: f"cars_{_half(split)}/{n[_half(split)]:05}.jpg",
    Layout.FLOWERS: lambda _, __, n: f"image_{n['all']:05}.jpg",
    Layout.AIRCRAFT: lambda _, __, n: f"{n['all']:07}.jpg",
    Layout.SUN397: lambda raw, _, n: f"{raw[1:]}/sun_{n['all']:016x}.jpg",
    Layout.UCF101: lambda raw, _, n: _midframe(raw, n["all"]),
}


def _midframe(action: str, number: int) -> str:
    folder = "".join(f"_{c}" if c.isupper() else c for c in action)[1:]
    # The videos of one action are not spelled as the action is.
    video = action.replace("Handstand", "HandStand")
    return f"{folder}/v_{video}_g{number // 100:02}_c{number % 100:02}.jpg"


@cache
def _encoded(suffix: str, label: int, number: int) -> bytes:
    """Return a tiny picture: a class has a colour, its pictures a stripe each."""
    from PIL import Image

    colour = ((label * 97) % 256, (label * 57 + 80) % 256, (label * 151 + 160) % 256)
    image = Image.new("RGB", (32, 32), colour)
    image.paste((255, 255, 255), (0, 8 * number, 32, 8 * number + 4))
    return _file_of(image, suffix)


@cache
def _noise(suffix: str, number: int, pixels: tuple[int, int]) -> bytes:
    """Return a picture that takes as long to decode as a photo of its size."""
    from PIL import Image

    image = Image.effect_noise(pixels, 30.0).convert("RGB")
    image.paste((255, 255, 255), (0, 8 * number, 32, 8 * number + 4))
    return _file_of(image, suffix)


def _file_of(image: Any, suffix: str) -> bytes:
    file = BytesIO()
    image.save(file, "PNG" if suffix == ".png" else "JPEG")
    return file.getvalue()


def _write_strangers(row: DatasetSpec, images: Path) -> None:
    """Write what is no picture of the data set."""
    (images / ".DS_Store").write_bytes(b"x")
    first = next(path for path in sorted(images.rglob("*")) if path.is_file() and path.suffix)
    for name in ("Thumbs.db", ".directory", f"._{first.name}"):
        (first.parent / name).write_bytes(b"x")
    match row.name:
        case "caltech101":
            for name in ("BACKGROUND_Google", "Faces_easy"):
                (images / name).mkdir()
                (images / name / "image_0001.jpg").write_bytes(_encoded(".jpg", 0, 0))
        case "oxford_pets":
            (images / "Abyssinian_100.mat").write_bytes(b"MATLAB")
        case "imagenet_a" | "imagenet_r":
            (images / "README.txt").write_text("This is a data set to test with.")


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def _write_lines(file: Path, lines: list[str], end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def _halves(pictures: tuple[Picture, ...]) -> tuple[list[Picture], list[Picture]]:
    """Return the pictures to learn from, validation included, and those to test with."""
    return (
        [picture for picture in pictures if picture.split != "test"],
        [picture for picture in pictures if picture.split == "test"],
    )


def _raw_names(pictures: tuple[Picture, ...]) -> list[str]:
    return list(dict.fromkeys(picture.raw for picture in pictures))


def _pets(folder: Path, pictures: tuple[Picture, ...]) -> None:
    for name, half in zip(("trainval", "test"), _halves(pictures), strict=True):
        lines = [f"{p.stem} {p.label + 1} {1 + p.label % 2} {1 + p.label // 2}" for p in half]
        _write_lines(folder / "annotations" / f"{name}.txt", lines)


def _cars(folder: Path, pictures: tuple[Picture, ...]) -> None:
    import numpy as np
    from scipy.io import savemat

    (folder / "devkit").mkdir()
    names = np.array(_raw_names(pictures), dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    files = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    for file, half in zip(files, _halves(pictures), strict=True):
        table = np.zeros((1, len(half)), [(name, object) for name in (*boxes, "class", "fname")])
        for number, picture in enumerate(half):
            corners = (np.uint8(1), np.uint8(1), np.uint16(300), np.uint8(30))
            table[0, number] = (*corners, np.uint8(picture.label + 1), picture.file)
        savemat(folder / file, {"annotations": table})


def _flowers(folder: Path, pictures: tuple[Picture, ...]) -> None:
    import numpy as np
    from scipy.io import savemat

    labels = np.array([[picture.label + 1 for picture in pictures]], dtype=np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    names = {str(label): name for label, name in enumerate(_raw_names(pictures), start=1)}
    _write_json(folder / "cat_to_name.json", dict(reversed(names.items())))


def _aircraft(folder: Path, pictures: tuple[Picture, ...]) -> None:
    _write_lines(folder / "variants.txt", _raw_names(pictures))
    for split in ("train", "val", "test"):
        lines = [f"{p.stem} {p.raw}" for p in pictures if p.split == split]
        _write_lines(folder / f"images_variant_{split}.txt", lines)


def _sun397(folder: Path, pictures: tuple[Picture, ...]) -> None:
    _write_lines(folder / "ClassName.txt", _raw_names(pictures))
    for name, half in zip(("Training", "Testing"), _halves(pictures), strict=True):
        _write_lines(folder / f"{name}_01.txt", [f"/{picture.path}" for picture in half])


def _ucf101(folder: Path, pictures: tuple[Picture, ...]) -> None:
    lists = folder / "ucfTrainTestlist"
    train, test = _halves(pictures)
    names = [f"{label} {name}" for label, name in enumerate(_raw_names(pictures), start=1)]
    _write_lines(lists / "classInd.txt", names, end=" \r\n")
    videos = [f"{p.raw}/{p.stem}.avi {p.label + 1}" for p in train]
    _write_lines(lists / "trainlist01.txt", videos)
    _write_lines(lists / "testlist01.txt", [f"{p.raw}/{p.stem}.avi" for p in test], end="\r\n")


_WRITERS: dict[Layout, Callable[[Path, tuple[Picture, ...]], None]] = {
    Layout.PETS: _pets,
    Layout.CARS: _cars,
    Layout.FLOWERS: _flowers,
    Layout.AIRCRAFT: _aircraft,
    Layout.SUN397: _sun397,
    Layout.UCF101: _ucf101,
}
