from dataclasses import replace

import pytest
from facts import facts
from miniatures import NAMES, PHOTOS, VARIANTS

from pd_core.core.errors import UnknownName
from pd_core.data.catalog import embedded
from pd_core.data.catalog.annotations import class_folders, imagenet_names
from pd_core.data.catalog.catalogue import Layout, dataset_names, dataset_spec
from pd_core.data.loading.splits import base_count


def test_eleven_photo_data_sets_and_four_variants_follow_as_many_embedded_ones() -> None:
    assert dataset_names() == (*embedded.DOMAINS, *embedded.VARIANTS, *PHOTOS, *VARIANTS)
    assert len(PHOTOS) == len(embedded.DOMAINS) == 11
    assert len(VARIANTS) == len(embedded.VARIANTS) == 4


@pytest.mark.parametrize("name", dataset_names())
def test_every_row_says_what_it_is(name: str) -> None:
    spec = dataset_spec(name)

    assert spec.name == name
    assert spec.title
    assert 2 <= spec.num_classes <= 1000
    assert (spec.folder == spec.image_dir == "") == (spec.layout is Layout.EMBEDDED)
    assert (spec.test is None) == (spec.layout is Layout.EMBEDDED)
    assert hash(spec) == hash(replace(spec))


@pytest.mark.parametrize("name", PHOTOS)
def test_rows_of_photo_data_sets_are_the_facts(name: str) -> None:
    spec = dataset_spec(name)
    row = facts("datasets")["datasets"][name]

    assert row["dir"] == spec.folder
    assert row["image_dir"] == spec.image_dir
    assert row["num_classes"] == spec.num_classes
    assert row["split_file"] == spec.split_file
    assert (row["train"], row["val"] or 0, row["test"]) == (spec.train, spec.val, spec.test)
    renames = {folder: name for folder, name in row.get("renames", {}).items() if folder != name}
    assert renames == spec.renames


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("imagenetv2", 1000), ("imagenet_sketch", 1000), ("imagenet_a", 200), ("imagenet_r", 200)],
)
def test_variants_of_imagenet_are_there_to_test_only(name: str, num_classes: int) -> None:
    spec = dataset_spec(name)
    row = facts("datasets")["variants_of_imagenet"][name]

    assert (row["dir"], row["image_dir"]) == (spec.folder, spec.image_dir)
    assert (spec.num_classes, spec.train, spec.val) == (num_classes, 0, 0)
    assert spec.test == row["test"]


@pytest.mark.parametrize("name", facts("paper")["dataset_sizes"])
def test_sizes_are_those_of_the_paper(name: str) -> None:
    spec = dataset_spec(name)
    sizes = facts("paper")["dataset_sizes"][name]

    assert spec.num_classes == facts("paper")["num_classes"][name]
    assert spec.train == sizes["train"]
    assert spec.test == sizes["test_base"] + sizes["test_novel"]


@pytest.mark.parametrize("name", ["imagenet", "food101", "sun397", "dtd"])
def test_base_classes_have_the_papers_test_pictures_where_classes_are_of_one_size(
    name: str,
) -> None:
    spec = dataset_spec(name)
    assert spec.test is not None
    per_class = spec.test // spec.num_classes

    assert (
        base_count(spec.num_classes) * per_class
        == (facts("paper")["dataset_sizes"][name]["test_base"])
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_in_class_folders_has_one_for_each_class(name: str) -> None:
    spec = dataset_spec(name)
    folders = class_folders(spec)

    match spec.layout:
        case Layout.PETS | Layout.CARS | Layout.FLOWERS | Layout.AIRCRAFT:
            assert not folders
        case Layout.IMAGENET:
            assert len(folders) == 2 * spec.num_classes
        case _:
            assert len(folders) == spec.num_classes
    assert len(set(folders)) == len(folders)
    assert set(spec.renames) <= set(folders)
    assert not set(spec.ignored) & set(folders)


@pytest.mark.parametrize("name", ["caltech101", "food101", "sun397", "dtd", "eurosat"])
def test_class_folders_are_the_published_ones_in_the_order_of_a_sorted_listing(name: str) -> None:
    folders = class_folders(dataset_spec(name))

    assert list(folders) == sorted(facts("class_names")[name])


def test_class_folders_of_imagenet_and_its_variants_are_wnids_or_labels() -> None:
    names = facts("class_names")
    wnids = list(names["imagenet"])

    assert dict(imagenet_names()) == names["imagenet"]
    assert class_folders(dataset_spec("imagenet_sketch")) == tuple(wnids)
    for name in ("imagenet_a", "imagenet_r"):
        expected = tuple(wnids[label] for label in names[name])
        assert class_folders(dataset_spec(name)) == expected
    assert class_folders(dataset_spec("imagenetv2")) == tuple(map(str, range(1000)))
    assert class_folders(dataset_spec("imagenet"))[::1000] == (
        "train/n01440764",
        "val/n01440764",
    )


def test_class_folders_of_ucf101_are_its_actions_in_words() -> None:
    folders = class_folders(dataset_spec("ucf101"))

    assert [folder.replace("_", "") for folder in folders] == facts("class_names")["ucf101"]
    for folder in (
        "Apply_Eye_Makeup",
        "Body_Weight_Squats",
        "Handstand_Pushups",
        "Javelin_Throw",
        "Rock_Climbing_Indoor",
        "Tai_Chi",
        "Yo_Yo",
    ):
        assert folder in folders


def test_an_unknown_data_set_gets_the_nearest_name_and_all_known_ones() -> None:
    with pytest.raises(UnknownName, match="'dtd2'; did you mean 'dtd'.*known: .*imagenet_r"):
        dataset_spec("dtd2")
