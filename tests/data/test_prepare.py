"""The stage `prepare` writes labels of base classes, and unlabelled images."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from miniatures import prepare_config

from pd_core.core.errors import BadParams, MissingFile, UnknownName
from pd_core.data.catalog import embedded, prepare
from pd_core.data.catalog.catalogue import PrepareConfig
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.data.loading.splits import Protocol

NAME = "embedded_digits"
OPTIONS: dict[str, Any] = {"data_root": Path("nowhere"), "seed": 1}


def config(**given: Any) -> PrepareConfig:
    return prepare_config(**{"shots": 16, "val_shots": 4, **given})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / NAME
    prepare.run(NAME, out, config(), **OPTIONS)
    return out


def test_the_few_shot_labels_are_of_base_classes_only(prepared: Path) -> None:
    content = read_prepared(prepared)
    labels = [label for _, label in content.few_shot]
    assert sorted(set(labels)) == list(range(5))
    assert len(labels) == 5 * 16
    assert content.taught == embedded.class_names(NAME)[:5]


def test_the_unlabelled_list_has_the_paths_of_the_complete_train_split(prepared: Path) -> None:
    paths = read_unlabelled(prepared)
    assert len(paths) == len(set(paths)) == 10 * embedded.HANDWRITTEN_PER_CLASS["train"]
    assert {path for path, _ in read_prepared(prepared).few_shot} <= set(paths)


def test_no_test_image_is_in_a_training_list(prepared: Path) -> None:
    content = read_prepared(prepared)
    with zipfile.ZipFile(content.images) as archive:
        training = {*read_unlabelled(prepared), *(path for path, _ in content.few_shot)}
        training |= {path for path, _ in (*content.few_shot_val, *content.val)}
        training_images = {archive.read(path) for path in training}
        test_images = {archive.read(path) for path, _ in content.test}
    assert not training_images & test_images


def test_the_protocol_all_classes_has_labels_of_all_classes(tmp_path: Path) -> None:
    out = tmp_path / NAME
    prepare.run(NAME, out, config(protocol=Protocol.ALL_CLASSES), **OPTIONS)
    assert {label for _, label in read_prepared(out).few_shot} == set(range(10))


@pytest.mark.parametrize("protocol", [protocol for protocol in Protocol if protocol.has_source])
def test_a_target_data_set_has_labels_of_test_images_only(
    prepared: Path, tmp_path: Path, protocol: Protocol
) -> None:
    out = tmp_path / NAME
    prepare.run(NAME, out, config(protocol=protocol), **OPTIONS)
    content = read_prepared(out)
    assert (content.taught, content.few_shot, content.few_shot_val) == ((), (), ())
    assert content.test == read_prepared(prepared).test
    assert read_unlabelled(out) == read_unlabelled(prepared)


def test_the_test_images_are_unlabelled_only_if_transductive(
    prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / NAME
    prepare.run(NAME, out, config(transductive=True), **OPTIONS)
    tested = {path for path, _ in read_prepared(out).test}
    assert set(read_unlabelled(out)) == tested
    assert not tested & set(read_unlabelled(prepared))


def test_the_seed_changes_the_few_shot_lists_only(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / NAME
    prepare.run(NAME, out, config(), **{**OPTIONS, "seed": 2})
    assert (out / "images.zip").read_bytes() == (prepared / "images.zip").read_bytes()
    assert (out / "unlabelled.json").read_bytes() == (prepared / "unlabelled.json").read_bytes()
    first, second = (json.loads((folder / "split.json").read_text()) for folder in (prepared, out))
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"few_shot", "few_shot_val", "seed"}


def test_more_shots_than_images_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / NAME
    with pytest.raises(BadParams, match="shots = 100000: the largest class has 90 train images"):
        prepare.run(NAME, out, config(shots=100_000), **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'dtd'"):
        prepare.run("dtd2", tmp_path / "dtd2", config(), **OPTIONS)


def test_a_missing_photo_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="PD_DATA_ROOT"):
        prepare.run("dtd", tmp_path / "dtd", config(), **OPTIONS)
    assert list(tmp_path.iterdir()) == []
