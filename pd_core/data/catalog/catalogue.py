"""Catalogue of the data sets, one row each.

Sizes are those of the community's splits (Zhou et al., "Learning to Prompt for Vision-Language
Models", IJCV 2022, appendix), which the paper uses; those of ImageNet's variants are their
publishers'. Embedded rows come from `embedded.py`, rows of the user's own images from
`params.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pd_core.core.config import Config, Count
from pd_core.core.errors import unknown
from pd_core.data.loading.splits import Protocol


class Layout(StrEnum):
    """Format of a data set on disk; each has one reader."""

    EMBEDDED = "embedded"  # built from installed packages
    OWN = "own"  # the user's images, in class folders or a list
    CLASS_FOLDERS = "class_folders"  # a folder of images for each class
    IMAGENET = "imagenet"  # the same twice, for train and test; folders named by WordNet id
    IMAGENET_TEST = "imagenet_test"  # folders named by WordNet id, test images only
    IMAGENET_NUMBERED = "imagenet_numbered"  # folders named by label, test images only
    PETS = "pets"  # two text files of name, label, species and breed
    CARS = "cars"  # three MATLAB files
    FLOWERS = "flowers"  # a MATLAB file of labels, and names in JSON
    AIRCRAFT = "aircraft"  # three text files of number and variant
    SUN397 = "sun397"  # two text files of paths; class folders in folders
    UCF101 = "ucf101"  # two text files of videos, with one frame of each


LISTS = (".csv", ".tsv", ".json", ".jsonl")
"""Suffixes of the lists of `OwnImages`."""

_Path = Annotated[str, Field(min_length=1)]


class AddedLabels(Config):
    """List of labels of unlabelled images that `promptkd data label` has written.

    Attributes:
        path: CSV file, relative to `params.yaml`; its paths are below the folder of all images.
        sha256: Its hash, so that stages depend on its content.
    """

    path: _Path
    sha256: str


class OwnImages(Config):
    """Locations of the user's own images, below the data root.

    Attributes:
        labelled: Folder of class folders, or a list (a suffix of `LISTS`) with path, label and,
            optionally, split.
        unlabelled: Folder of images without labels, if any.
        test: Folder of class folders, or a list, of test images, if any.
        added: Labels of unlabelled images that were added later, if any.
    """

    labelled: _Path
    unlabelled: _Path | None = None
    test: _Path | None = None
    added: AddedLabels | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The paths that are not None."""
        return tuple(path for path in (self.labelled, self.unlabelled, self.test) if path)

    @property
    def folder(self) -> str:
        """The folder below the data root that holds everything."""
        parents = [str(Path(path).parent) if is_list(path) else path for path in self.given]
        return os.path.commonpath(parents) if len(parents) > 1 else parents[0]


class PrepareConfig(Config):
    """Block `prepare` of `params.yaml`: few-shot lists, and the images to distil on.

    Attributes:
        own: Locations of the user's own images; None for a data set of the catalogue.
        protocol: Protocol, which sets the classes that the teacher sees labels of.
        shots: Labelled training images per class.
        val_shots: Labelled validation images per class, at most `shots`.
        unlabelled_per_class: Training images per class in the unlabelled list; None for all.
        transductive: List the test images instead, as the published code does for ImageNet's
            variants, which have no others; the student is then trained on them without labels.
    """

    own: OwnImages | None
    protocol: Protocol
    shots: Count
    val_shots: Count
    unlabelled_per_class: Count | None
    transductive: bool


def is_list(path: str) -> bool:
    """True if a path of `OwnImages` is a list; otherwise it is a folder."""
    return path.lower().endswith(LISTS)


@dataclass(frozen=True)
class DatasetSpec:
    """Row of the catalogue; sizes are None if unknown."""

    name: str  # in parameters and stages
    title: str  # in tables and figures
    layout: Layout
    num_classes: int  # 0 for the user's own images
    folder: str = ""  # below the data root; empty if embedded
    image_dir: str = ""  # folder below `folder` that image paths start from
    split_file: str | None = None
    """The community's lists, below `folder`, which take precedence over the annotations."""
    train: int | None = None  # training images; 0 if there are test images only
    val: int | None = None  # validation images
    test: int | None = None  # test images
    parts: tuple[str, ...] = ()
    """Folders below `image_dir` that hold all images; empty if it does so itself."""
    ignored: tuple[str, ...] = ()  # class folders that are no classes of the benchmark
    renames: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Class names that differ from their class folder, by folder."""
    own: OwnImages | None = None  # locations of the user's own images


_PHOTOS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "imagenet", "ImageNet", Layout.IMAGENET, 1000, "imagenet", "images",
            None, 1_281_167, 0, 50_000,
            parts=("train", "val"),
        ),
        DatasetSpec(
            "caltech101", "Caltech101", Layout.CLASS_FOLDERS, 100,
            "caltech-101", "101_ObjectCategories",
            "split_zhou_Caltech101.json", 4128, 1649, 2465,
            ignored=("BACKGROUND_Google", "Faces_easy"),
            renames={
                "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike",
                "airplanes": "airplane",
            },
        ),
        DatasetSpec(
            "oxford_pets", "OxfordPets", Layout.PETS, 37, "oxford_pets", "images",
            "split_zhou_OxfordPets.json", 2944, 736, 3669,
        ),
        DatasetSpec(
            "stanford_cars", "StanfordCars", Layout.CARS, 196, "stanford_cars", ".",
            "split_zhou_StanfordCars.json", 6509, 1635, 8041,
            parts=("cars_train", "cars_test"),
        ),
        DatasetSpec(
            "oxford_flowers", "Flowers102", Layout.FLOWERS, 102, "oxford_flowers", "jpg",
            "split_zhou_OxfordFlowers.json", 4093, 1633, 2463,
        ),
        DatasetSpec(
            "food101", "Food101", Layout.CLASS_FOLDERS, 101, "food-101", "images",
            "split_zhou_Food101.json", 50_500, 20_200, 30_300,
        ),
        DatasetSpec(
            "fgvc_aircraft", "FGVCAircraft", Layout.AIRCRAFT, 100, "fgvc_aircraft", "images",
            None, 3334, 3333, 3333,
        ),
        DatasetSpec(
            "sun397", "SUN397", Layout.SUN397, 397, "sun397", "SUN397",
            "split_zhou_SUN397.json", 15_880, 3970, 19_850,
        ),
        DatasetSpec(
            "dtd", "DTD", Layout.CLASS_FOLDERS, 47, "dtd", "images",
            "split_zhou_DescribableTextures.json", 2820, 1128, 1692,
        ),
        DatasetSpec(
            "eurosat", "EuroSAT", Layout.CLASS_FOLDERS, 10, "eurosat", "2750",
            "split_zhou_EuroSAT.json", 13_500, 5400, 8100,
            renames={
                "AnnualCrop": "Annual Crop Land", "Highway": "Highway or Road",
                "HerbaceousVegetation": "Herbaceous Vegetation Land",
                "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
                "PermanentCrop": "Permanent Crop Land",
                "Residential": "Residential Buildings", "SeaLake": "Sea or Lake",
            },
        ),
        DatasetSpec(
            "ucf101", "UCF101", Layout.UCF101, 101, "ucf101", "UCF-101-midframes",
            "split_zhou_UCF101.json", 7639, 1898, 3783,
        ),
        DatasetSpec(
            "imagenetv2", "ImageNetV2", Layout.IMAGENET_NUMBERED, 1000,
            "imagenetv2", "imagenetv2-matched-frequency-format-val",
            None, 0, 0, 10_000,
        ),
        DatasetSpec(
            "imagenet_sketch", "ImageNet-Sketch", Layout.IMAGENET_TEST, 1000,
            "imagenet-sketch", "images",
            None, 0, 0, 50_889,
        ),
        DatasetSpec(
            "imagenet_a", "ImageNet-A", Layout.IMAGENET_TEST, 200,
            "imagenet-adversarial", "imagenet-a",
            None, 0, 0, 7500,
        ),
        DatasetSpec(
            "imagenet_r", "ImageNet-R", Layout.IMAGENET_TEST, 200,
            "imagenet-rendition", "imagenet-r",
            None, 0, 0, 30_000,
        ),
    )
}  # fmt: skip


def dataset_names() -> tuple[str, ...]:
    """Names of all data sets, embedded ones first."""
    # Drawing glyphs needs scipy, which takes half a second to import.
    from pd_core.data.catalog import embedded

    return (*embedded.DOMAINS, *embedded.VARIANTS, *_PHOTOS)


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of a data set.

    Raises:
        UnknownName: There is no such data set.
    """
    if name in _PHOTOS:
        return _PHOTOS[name]
    from pd_core.data.catalog import embedded

    if name not in {*embedded.DOMAINS, *embedded.VARIANTS}:
        raise unknown("data set", name, dataset_names())
    return DatasetSpec(
        name,
        embedded.domain(name).title,
        Layout.EMBEDDED,
        num_classes=len(embedded.class_names(name)),
    )


def own_spec(name: str, own: OwnImages) -> DatasetSpec:
    """Return a row for the user's own images."""
    return DatasetSpec(name, name, Layout.OWN, num_classes=0, folder=own.folder, own=own)
