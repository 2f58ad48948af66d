"""Every data set is read from both of its label sources."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from miniatures import NAMES, PHOTOS, VARIANTS, WITH_SPLIT_FILE, as_lists, miniature, write

from pd_core.core.errors import MissingFile, PdError
from pd_core.data.catalog.annotations import ANNOTATION_FILES
from pd_core.data.catalog.catalogue import DatasetSpec, Layout, dataset_spec
from pd_core.data.catalog.readers import (
    CLASS_NAMES,
    LabelSource,
    count_problem,
    image_root,
    label_source,
    read_splits,
    sources,
)
from pd_core.data.loading.splits import Splits, base_and_novel

SOURCES = [(name, False) for name in NAMES] + [(name, True) for name in WITH_SPLIT_FILE]
CLASSES = {
    "imagenet": ("tench", "goldfish", "great white shark"),
    "caltech101": ("face", "leopard", "motorbike"),
    "oxford_pets": ("abyssinian", "american_bulldog", "maine_coon"),
    "stanford_cars": (
        "2000 AM General Hummer SUV",
        "2012 Ram C/V Cargo Van Minivan",
        "2012 smart fortwo Convertible",
    ),
    "oxford_flowers": ("pink primrose", "hard-leaved pocket orchid", "colt's foot"),
    "food101": ("apple_pie", "baby_back_ribs", "baklava"),
    "fgvc_aircraft": ("707-320", "BAE 146-200", "F-16A/B"),
    "sun397": ("abbey", "outdoor apartment_building", "backseat car_interior"),
    "dtd": ("banded", "blotchy", "braided"),
    "eurosat": ("Annual Crop Land", "Forest", "Herbaceous Vegetation Land"),
    "ucf101": ("Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"),
    "imagenetv2": ("tench", "goldfish", "great white shark"),
    "imagenet_sketch": ("tench", "goldfish", "great white shark"),
    "imagenet_a": ("stingray", "goldfinch", "junco"),
    "imagenet_r": ("goldfish", "great white shark", "hammerhead shark"),
}


def refusal(spec: DatasetSpec, root: Path) -> str:
    """Return the one line that a data set is refused with."""
    with pytest.raises(PdError) as caught:
        read_splits(spec, root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def paths(splits: Splits) -> list[str]:
    return [item.path for item in (*splits.train, *splits.val, *splits.test)]


@pytest.mark.parametrize(("name", "split_file"), SOURCES)
def test_a_data_set_is_read_from_either_label_source(
    name: str, split_file: bool, tmp_path: Path
) -> None:
    spec = miniature(name)
    written = write(spec, tmp_path, split_file=split_file)

    splits = read_splits(spec, tmp_path)

    assert label_source(spec, tmp_path) is (
        LabelSource.SPLIT_FILE if split_file else LabelSource.ANNOTATIONS
    )
    assert splits.class_names == CLASSES[name]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (
        spec.train,
        spec.val,
        spec.test,
    )
    label_of = {picture.path: picture.label for picture in written}
    for item in (*splits.train, *splits.val, *splits.test):
        assert label_of.pop(item.path) == item.label
        assert (image_root(spec, tmp_path) / item.path).is_file()
    assert not label_of
    if name in PHOTOS and spec.layout not in (Layout.CLASS_FOLDERS, Layout.FLOWERS):
        test = sorted(picture.path for picture in written if picture.split == "test")
        assert sorted(item.path for item in splits.test) == test
    for items in (splits.train, splits.val, splits.test):
        assert len(set(Counter(item.label for item in items).values())) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_drawn_lists_are_equal_in_every_run(name: str, tmp_path: Path) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    random.seed(1)
    first = read_splits(spec, tmp_path)
    random.seed(2)

    assert read_splits(spec, tmp_path) == first


def test_drawn_lists_are_equal_on_every_machine(tmp_path: Path) -> None:
    write(miniature("dtd"), tmp_path)

    splits = read_splits(miniature("dtd"), tmp_path)

    assert [item.path for item in splits.test if item.label == 0] == [
        "banded/image_0005.jpg",
        "banded/image_0002.jpg",
        "banded/image_0003.jpg",
    ]


def test_a_split_file_takes_precedence(tmp_path: Path) -> None:
    spec = miniature("oxford_pets")
    lists = as_lists(write(spec, tmp_path))
    lists["train"][0], lists["test"][0] = lists["test"][0], lists["train"][0]
    file = tmp_path / "oxford_pets" / str(spec.split_file)
    file.write_text(json.dumps(lists))

    splits = read_splits(spec, tmp_path)

    assert splits.test[0].path == "Abyssinian_1.jpg"
    assert sources(spec, tmp_path) == (tmp_path / "oxford_pets" / "images", file)


@pytest.mark.parametrize(("name", "split_file"), SOURCES)
def test_sources_are_all_that_is_read(name: str, split_file: bool, tmp_path: Path) -> None:
    spec = miniature(name)
    write(spec, tmp_path, split_file=split_file)
    if name in ("imagenet", *VARIANTS):
        write_class_names(tmp_path / spec.folder)
    elsewhere = tmp_path / "elsewhere"
    for source in sources(spec, tmp_path):
        copy = elsewhere / source.relative_to(tmp_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)

    assert read_splits(spec, elsewhere) == read_splits(spec, tmp_path)
    assert sources(spec, tmp_path) == sources(spec, tmp_path)


@pytest.mark.parametrize(("name", "split_file"), SOURCES)
def test_images_are_not_read(name: str, split_file: bool, tmp_path: Path) -> None:
    spec = miniature(name)
    write(spec, tmp_path, split_file=split_file)
    expected = read_splits(spec, tmp_path)
    for file in image_root(spec, tmp_path).rglob("*.[jJ][pP]*"):
        file.unlink()
        file.symlink_to("nowhere")

    assert read_splits(spec, tmp_path) == expected


def test_an_embedded_data_set_is_built_where_asked(tmp_path: Path) -> None:
    spec = dataset_spec("embedded_digits")

    splits = read_splits(spec, tmp_path)

    assert label_source(spec, tmp_path) is LabelSource.EMBEDDED
    assert sources(spec, tmp_path) == (image_root(spec, tmp_path),)
    assert image_root(spec, tmp_path).is_file()
    assert len(splits.class_names) == spec.num_classes == 10
    assert all(base_and_novel(splits.test, spec.num_classes))


def test_folders_that_are_no_classes_may_be_there_or_not(tmp_path: Path) -> None:
    spec = miniature("caltech101")
    write(spec, tmp_path)
    expected = read_splits(spec, tmp_path)
    for folder in spec.ignored:
        shutil.rmtree(image_root(spec, tmp_path) / folder)
    (image_root(spec, tmp_path) / "__MACOSX").mkdir()

    assert read_splits(spec, tmp_path) == expected


@pytest.mark.parametrize(
    ("file", "counts"),
    [("a.JPG", True), ("a.webp", True), (".a.jpg", False), ("a.mat", False), ("jpg", False)],
)
def test_in_class_folders_images_count_by_their_suffix(
    file: str, counts: bool, tmp_path: Path
) -> None:
    spec = miniature("food101")
    write(spec, tmp_path)
    (image_root(spec, tmp_path) / "baklava" / file).touch()

    splits = read_splits(replace(spec, train=None), tmp_path)

    assert (f"baklava/{file}" in paths(splits)) == counts


def test_lists_of_ucf101_may_spell_an_action_in_another_case(tmp_path: Path) -> None:
    spec = miniature("ucf101")
    write(spec, tmp_path)
    expected = read_splits(spec, tmp_path)
    for file in (tmp_path / "ucf101" / "ucfTrainTestlist").glob("*list01.txt"):
        file.write_text(file.read_text().replace("HandstandPushups/", "HandStandPushups/"))

    assert read_splits(spec, tmp_path) == expected


def write_class_names(folder: Path, *, without: str = "", end: str = "") -> None:
    from pd_core.data.catalog.annotations import imagenet_names

    lines = [f"{wnid} the {name}" for wnid, name in imagenet_names().items() if wnid != without]
    (folder / CLASS_NAMES).write_text("\n".join([*lines, end]))


@pytest.mark.parametrize("name", ["imagenet", *VARIANTS])
def test_a_file_of_class_names_beside_imagenets_images_takes_precedence(
    name: str, tmp_path: Path
) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    write_class_names(tmp_path / spec.folder)

    names = read_splits(spec, tmp_path).class_names

    assert names == tuple(f"the {name}" for name in CLASSES[name])
    assert sources(spec, tmp_path)[-1] == tmp_path / spec.folder / CLASS_NAMES


@pytest.mark.parametrize(("name", "wnid"), [("imagenet", "n01443537"), ("imagenetv2", "n01443537")])
def test_a_class_without_a_name_is_refused(name: str, wnid: str, tmp_path: Path) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    write_class_names(tmp_path / spec.folder, without=wnid)

    folder = wnid if name == "imagenet" else "1"
    assert f"class folder '{folder}' has no name" in refusal(spec, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("n01440764 tench", "names 'n01440764' again"), ("tench", "not 'wnid name'")],
)
def test_corrupt_class_names_of_imagenet_are_refused(
    line: str, message: str, tmp_path: Path
) -> None:
    spec = miniature("imagenet")
    write(spec, tmp_path)
    write_class_names(tmp_path / spec.folder, end=line)

    assert message in refusal(spec, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_is_named_with_its_path_and_a_remedy(name: str, tmp_path: Path) -> None:
    spec = dataset_spec(name)

    with pytest.raises(MissingFile) as caught:
        read_splits(spec, tmp_path)

    message = str(caught.value)
    assert str(tmp_path / spec.folder) in message
    assert "download" in message
    assert "PD_DATA_ROOT" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (name, file)
        for name in PHOTOS
        for file in ANNOTATION_FILES.get(dataset_spec(name).layout, ())
    ],
)
def test_a_missing_label_file_is_named_and_what_may_take_its_place(
    name: str, file: str, tmp_path: Path
) -> None:
    spec = miniature(name)
    write(spec, tmp_path)
    (tmp_path / spec.folder / file).unlink()

    message = refusal(spec, tmp_path)

    assert f"no '{tmp_path / spec.folder / file}'" in message
    assert spec.split_file is None or f"or the split file '{spec.split_file}'" in message


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dtd", {"train": 16}, "expected 31 images, found 30"),
        ("oxford_flowers", {"test": 8}, "expected 29 images, found 30"),
        ("oxford_pets", {"val": 4}, "expected 16 train and validation images, found 15 train"),
        ("ucf101", {"test": 8}, "expected 8 test images, found 9 test"),
        ("fgvc_aircraft", {"val": 4, "test": 1}, "expected 4 validation, 1 test images, found 3"),
        ("imagenet", {"train": 13}, "expected 13 train images, found 12 train"),
        ("imagenet_a", {"test": 10}, "expected 10 test images, found 9 test"),
    ],
)
def test_counts_that_differ_from_the_row_are_refused(
    name: str, change: dict[str, int], message: str, tmp_path: Path
) -> None:
    spec = replace(miniature(name), **change)  # type: ignore[arg-type]
    write(miniature(name), tmp_path)

    assert message in refusal(spec, tmp_path)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("dtd", {"train": 14, "val": 7}),
        ("oxford_flowers", {"val": 5, "test": 10}),
        ("sun397", {"train": 11, "val": 4}),
    ],
)
def test_drawn_lists_count_together_since_rounding_may_move_a_few_images(
    name: str, moved: dict[str, int], tmp_path: Path
) -> None:
    spec = replace(miniature(name), **moved)  # type: ignore[arg-type]
    write(miniature(name), tmp_path)

    splits = read_splits(spec, tmp_path)

    assert not count_problem(spec, splits, LabelSource.ANNOTATIONS)
    assert "expected" in count_problem(spec, splits, LabelSource.SPLIT_FILE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dtd", "oxford_flowers"])
def test_a_data_set_of_full_size_is_read_from_both_label_sources(name: str, tmp_path: Path) -> None:
    spec = dataset_spec(name)
    written = write(spec, tmp_path)
    by_annotations = read_splits(spec, tmp_path)
    (tmp_path / spec.folder / str(spec.split_file)).write_text(json.dumps(as_lists(written)))

    by_split_file = read_splits(spec, tmp_path)

    assert by_annotations.class_names == by_split_file.class_names
    assert sorted(paths(by_annotations)) == sorted(paths(by_split_file))
    assert len(by_split_file.test) == spec.test
