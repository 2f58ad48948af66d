"""Which data sets there are: one row each. Adding a data set is adding a row.

Sizes are those of the community's splits (Zhou et al., "Learning to Prompt for Vision-Language
Models", IJCV 2022, appendix), which the paper uses. The embedded rows come from ``embedded.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pd_core.errors import unknown


class Layout(StrEnum):
    """How a data set lies on disk; ``readers.py`` has one reader for each."""

    EMBEDDED = "embedded"  # built from installed packages
    SPLIT_FILE = "split_file"  # the community's JSON lists beside a folder of pictures
    IMAGENET = "imagenet"  # class folders named by WordNet id, and a list of class names
    AIRCRAFT = "aircraft"  # text files that list pictures and variants


@dataclass(frozen=True)
class DatasetSpec:
    """One row of the catalogue.

    Attributes:
        name: What parameters and stages call it.
        title: What tables and figures call it.
        layout: How it lies on disk.
        num_classes: Number of classes.
        folder: Its folder below the data root; empty if it is embedded.
        image_dir: Folder of the pictures, below ``folder``.
        split_file: The community's lists, below ``folder``; None if there are none.
        train: Training pictures; None if the row does not say.
        val: Validation pictures; None if the row does not say, or there are none.
        test: Test pictures; None if the row does not say.
    """

    name: str
    title: str
    layout: Layout
    num_classes: int
    folder: str = ""
    image_dir: str = ""
    split_file: str | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None


def _community(
    name: str, title: str, folder: str, image_dir: str, split_file: str, sizes: tuple[int, ...]
) -> DatasetSpec:
    """Make a row with a split file; sizes are classes, train, validation and test pictures."""
    num_classes, train, val, test = sizes
    return DatasetSpec(
        name, title, Layout.SPLIT_FILE, num_classes, folder, image_dir, split_file, train, val, test
    )


_PAPER = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "imagenet",
            "ImageNet",
            Layout.IMAGENET,
            num_classes=1000,
            folder="imagenet",
            image_dir="images",
            train=1_281_167,
            test=50_000,
        ),
        _community(
            "caltech101", "Caltech101", "caltech-101", "101_ObjectCategories",
            "split_zhou_Caltech101.json", (100, 4128, 1649, 2465),
        ),
        _community(
            "oxford_pets", "OxfordPets", "oxford_pets", "images",
            "split_zhou_OxfordPets.json", (37, 2944, 736, 3669),
        ),
        _community(
            "stanford_cars", "StanfordCars", "stanford_cars", ".",
            "split_zhou_StanfordCars.json", (196, 6509, 1635, 8041),
        ),
        _community(
            "oxford_flowers", "Flowers102", "oxford_flowers", "jpg",
            "split_zhou_OxfordFlowers.json", (102, 4093, 1633, 2463),
        ),
        _community(
            "food101", "Food101", "food-101", "images",
            "split_zhou_Food101.json", (101, 50_500, 20_200, 30_300),
        ),
        DatasetSpec(
            "fgvc_aircraft",
            "FGVCAircraft",
            Layout.AIRCRAFT,
            num_classes=100,
            folder="fgvc_aircraft",
            image_dir="images",
            train=3334,
            val=3333,
            test=3333,
        ),
        _community(
            "sun397", "SUN397", "sun397", "SUN397",
            "split_zhou_SUN397.json", (397, 15_880, 3970, 19_850),
        ),
        _community(
            "dtd", "DTD", "dtd", "images",
            "split_zhou_DescribableTextures.json", (47, 2820, 1128, 1692),
        ),
        _community(
            "eurosat", "EuroSAT", "eurosat", "2750",
            "split_zhou_EuroSAT.json", (10, 13_500, 5400, 8100),
        ),
        _community(
            "ucf101", "UCF101", "ucf101", "UCF-101-midframes",
            "split_zhou_UCF101.json", (101, 7639, 1898, 3783),
        ),
    )
}  # fmt: skip


def dataset_names() -> tuple[str, ...]:
    """All names, embedded data sets first."""
    # Drawing glyphs needs scipy, which takes half a second to import.
    from pd_core.data import embedded

    return (*embedded.DOMAINS, *_PAPER)


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row called ``name``.

    Raises:
        UnknownName: There is none; the message has the nearest name and all known ones.
    """
    if name in _PAPER:
        return _PAPER[name]
    from pd_core.data import embedded

    if name not in embedded.DOMAINS:
        raise unknown("data set", name, dataset_names())
    return DatasetSpec(
        name,
        embedded.DOMAINS[name].title,
        Layout.EMBEDDED,
        num_classes=len(embedded.class_names(name)),
    )
