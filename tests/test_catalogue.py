import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pd_core.data import embedded
from pd_core.data.catalogue import DatasetSpec, Layout, dataset_names, dataset_spec
from pd_core.data.readers import image_root, read_splits
from pd_core.data.splits import base_and_novel
from pd_core.errors import BadData, MissingFile, UnknownName

PHOTOS = tuple(name for name in dataset_names() if name not in embedded.DOMAINS)
# A row of three classes in place of dtd's 47.
SMALL = replace(dataset_spec("dtd"), num_classes=3, train=6, val=3, test=3)

Lists = dict[str, list[list[Any]]]


def lists() -> Lists:
    sizes = {"train": 2, "val": 1, "test": 1}
    return {
        split: [
            [f"{name}/{split}_{number}.jpg", label, name]
            for label, name in enumerate(("banded", "dotted", "woven"))
            for number in range(size)
        ]
        for split, size in sizes.items()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for rows in lists().values():
        for path, _, _ in rows:
            file = tmp_path / "dtd" / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    write(tmp_path, lists())
    return tmp_path


def write(root: Path, content: Any) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(content))


def test_there_are_eleven_photo_data_sets_and_eleven_embedded_ones() -> None:
    assert len(PHOTOS) == len(embedded.DOMAINS) == 11


@pytest.mark.parametrize("name", dataset_names())
def test_every_row_says_what_it_is(name: str) -> None:
    spec = dataset_spec(name)

    assert spec.name == name
    assert spec.title
    assert spec.num_classes >= 10
    assert (spec.split_file is not None) == (spec.layout is Layout.SPLIT_FILE)
    assert (spec.folder == "") == (spec.layout is Layout.EMBEDDED)


def test_sizes_are_the_published_ones() -> None:
    spec = dataset_spec("oxford_pets")

    assert (spec.num_classes, spec.train, spec.val, spec.test) == (37, 2944, 736, 3669)
    assert sum(dataset_spec(name).num_classes for name in PHOTOS) == 2191


def test_an_unknown_data_set_gets_the_nearest_name_and_all_known_ones() -> None:
    with pytest.raises(UnknownName, match="'dtd2'; did you mean 'dtd'.*known: .*ucf101"):
        dataset_spec("dtd2")


def test_a_split_file_is_read(root: Path) -> None:
    splits = read_splits(SMALL, root)

    assert splits.class_names == ("banded", "dotted", "woven")
    assert [item.path for item in splits.train[:2]] == ["banded/train_0.jpg", "banded/train_1.jpg"]
    assert (len(splits.val), len(splits.test)) == (3, 3)
    assert image_root(SMALL, root) == root / "dtd" / "images"


def test_an_embedded_data_set_is_built_where_asked(tmp_path: Path) -> None:
    spec = dataset_spec("embedded_digits")

    splits = read_splits(spec, tmp_path)

    assert image_root(spec, tmp_path).is_file()
    assert len(splits.class_names) == spec.num_classes == 10
    assert all(base_and_novel(splits.test, spec.num_classes))


@pytest.mark.parametrize("name", PHOTOS)
def test_without_data_the_message_says_what_is_missing_where_and_what_to_do(
    name: str, tmp_path: Path
) -> None:
    spec = dataset_spec(name)

    with pytest.raises(MissingFile) as caught:
        read_splits(spec, tmp_path)

    message = str(caught.value)
    assert str(tmp_path / spec.folder) in message
    assert "download" in message
    assert "PD_DATA_ROOT" in message
    assert "\n" not in message


def test_a_missing_split_file_is_named(root: Path) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()

    with pytest.raises(MissingFile, match="no split file .*split_zhou_DescribableTextures.json"):
        read_splits(SMALL, root)


def test_missing_pictures_are_counted_and_the_first_is_named(root: Path) -> None:
    for name in ("val_0.jpg", "test_0.jpg"):
        (root / "dtd" / "images" / "dotted" / name).unlink()

    with pytest.raises(MissingFile, match="2 of 12 pictures .* 'dotted/val_0.jpg'"):
        read_splits(SMALL, root)


@pytest.mark.parametrize(
    ("what", "row"),
    [
        ("47 belong", replace(SMALL, num_classes=47)),
        ("6 train pictures where 7 belong", replace(SMALL, train=7)),
        ("3 validation pictures where 4 belong", replace(SMALL, val=4)),
        ("3 test pictures where 4 belong", replace(SMALL, test=4)),
    ],
)
def test_other_counts_than_the_rows_are_refused(what: str, row: DatasetSpec, root: Path) -> None:
    with pytest.raises(BadData, match=what):
        read_splits(row, root)


def _drop_a_list(content: Lists) -> Any:
    del content["val"]
    return content


def _leave_the_folder(content: Lists) -> Any:
    content["train"][0][0] = "../../secret.jpg"
    return content


def _put_label_in_text(content: Lists) -> Any:
    content["train"][0][1] = "0"
    return content


def _train_on_test(content: Lists) -> Any:
    content["train"][0] = content["test"][0]
    return content


def _skip_a_label(content: Lists) -> Any:
    return {
        split: [[path, label + (label == 2), name] for path, label, name in rows]
        for split, rows in content.items()
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_a_list, "lacks the lists"),
        (_leave_the_folder, "list 'train', entry 0 is .*secret"),
        (_put_label_in_text, "list 'train', entry 0"),
        (_train_on_test, "'banded/test_0.jpg' is in both train and test"),
        (_skip_a_label, "no image has label 2"),
        (lambda _: [1, 2], "lacks the lists"),
        (lambda content: {**content, "test": 3}, "list 'test' is no list"),
    ],
)
def test_a_damaged_split_file_is_refused(
    damage: Callable[[Lists], Any], message: str, root: Path
) -> None:
    write(root, damage(lists()))

    with pytest.raises(BadData, match=message):
        read_splits(SMALL, root)


def test_a_split_file_that_is_not_json_is_refused(root: Path) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text("{")

    with pytest.raises(BadData, match="is not JSON"):
        read_splits(SMALL, root)
