"""Photo data sets and users' own images go through every stage like the embedded ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import tiny
import trainings
from PIL import Image

from pd_core.core.artifacts import read_json
from pd_core.core.errors import BadData, MissingFile
from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog import prepare
from pd_core.data.catalog.catalogue import DatasetSpec, OwnImages
from pd_core.data.catalog.fingerprint import Level, fingerprint
from pd_core.data.catalog.readers import read_splits, sources
from pd_core.data.loading.prepared import read_prepared, read_unlabelled
from pd_core.data.loading.splits import Protocol

LISTS = miniatures.prepare_config()
OWN = OwnImages(labelled="parts/labelled", unlabelled="parts/unlabelled")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(*tiny.TRAININGS, "evaluation.evaluate"):
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def make(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, *, split_file: bool = False
) -> DatasetSpec:
    """Write a miniature, and let the stage use its row of the catalogue."""
    row = miniatures.miniature(name)
    miniatures.write(row, root, split_file=split_file)
    monkeypatch.setattr(prepare, "dataset_spec", lambda _: row)
    return row


def record(spec: DatasetSpec, root: Path, file: Path, level: Level = Level.FULL) -> Path:
    prints.write(file, fingerprint(sources(spec, root), root / spec.folder, level=level))
    return file


@pytest.mark.parametrize(
    ("name", "split_file"), [("dtd", True), ("stanford_cars", False), ("imagenet", False)]
)
def test_every_stage_takes_a_photo_data_set(
    name: str, split_file: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(name, root, monkeypatch, split_file=split_file)
    prepared, out = tmp_path / "prepare", tmp_path / "evaluate"
    printed = record(spec, root, tmp_path / "fingerprint.json")
    prepare.run(name, prepared, LISTS, data_root=root, seed=1, fingerprint=printed)
    options: dict[str, Any] = {"data_root": root, "epochs": 1}
    made = trainings.run_until_student(
        tmp_path, prepared, tuning={"batch_size": 2, "templates": 2, **options},
        distillation={"batch_size": 4, **options},
    )  # fmt: skip
    metrics = trainings.run_evaluate(**made, out=out, data_root=root, split="test", batch_size=4)

    splits = read_splits(spec, root)
    assert read_prepared(prepared, data_root=root).classes == splits.class_names
    assert set(read_unlabelled(prepared)) == {item.path for item in splits.train}
    assert set(metrics["student"]) == {"base", "novel", "hm", "all"}
    rows = read_json(out / "predictions.json")
    assert [row["path"] for row in rows] == [item.path for item in splits.test]


def test_a_variant_of_imagenet_is_there_to_test_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make("imagenet_a", root, monkeypatch)

    prepare.run("imagenet_a", tmp_path / "prepare", LISTS, data_root=root, seed=1)

    prepared = read_prepared(tmp_path / "prepare", data_root=root)
    assert not prepared.few_shot
    assert not read_unlabelled(tmp_path / "prepare")
    assert len(prepared.test) == spec.test


def test_images_that_differ_from_their_fingerprint_are_not_prepared(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = make("dtd", root, monkeypatch), tmp_path / "prepare"

    def run(printed: Path) -> None:
        prepare.run("dtd", out, LISTS, data_root=root, seed=1, fingerprint=printed)

    with pytest.raises(MissingFile, match="run `promptkd data fingerprint dtd`"):
        run(tmp_path / "none.json")
    printed = record(spec, root, tmp_path / "fingerprint.json")
    path = root / "dtd" / "images" / read_splits(spec, root).train[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BadData, match="data set 'dtd' is not what its fingerprint says"):
        run(printed)
    assert not out.exists()


def test_images_that_changed_since_are_noticed_before_a_stage_reads_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make("dtd", root, monkeypatch)
    printed = record(spec, root, tmp_path / "fingerprint.json", Level.SAMPLE)
    out = tmp_path / "prepare"
    prepare.run("dtd", out, LISTS, data_root=root, seed=1, fingerprint=printed)
    prepare.check_pictures(out, "dtd", own=None, data_root=root)

    (root / "dtd" / "images" / read_splits(spec, root).test[0].path).unlink()
    with pytest.raises(BadData, match="expected 30 files, found 29"):
        prepare.check_pictures(out, "dtd", own=None, data_root=root)


@pytest.fixture
def parts(root: Path) -> Path:
    """Write a user's images: two classes with three labels each, and four without."""
    rng = np.random.default_rng(0)
    names = [f"labelled/{part}/{k}.png" for part in ("screw", "nut") for k in range(3)]
    for name in (*names, *(f"unlabelled/{k}.png" for k in range(4))):
        file = root / "parts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file)
    return root


def test_own_pictures_are_prepared_with_labels_of_all_classes(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepare"
    spec = prepare.spec_of("parts", OWN)
    printed = record(spec, parts, tmp_path / "fingerprint.json")
    config = miniatures.prepare_config(own=OWN, protocol=Protocol.ALL_CLASSES)

    prepare.run("parts", out, config, data_root=parts, seed=1, fingerprint=printed)

    prepared = read_prepared(out, data_root=parts)
    assert prepared.classes == prepared.taught == ("nut", "screw")
    assert sorted(label for _, label in prepared.few_shot) == [0, 0, 1, 1]
    assert (prepared.val, prepared.test) == ((), ())
    unlabelled = read_unlabelled(out)
    assert len(unlabelled) == 10
    assert {path for path, _ in prepared.few_shot} < set(unlabelled)
    assert all((prepared.images / path).is_file() for path in unlabelled)
    prepare.check_pictures(out, "parts", own=OWN, data_root=parts)


def test_own_test_pictures_never_train_even_from_among_the_unlabelled(
    parts: Path, tmp_path: Path
) -> None:
    rows = "".join(
        f"labelled/{part}/{k}.png,{part},{'test' if k == 0 else 'train'}\n"
        for part in ("screw", "nut")
        for k in range(3)
    )
    (parts / "parts" / "list.csv").write_text("path,label,split\n" + rows)
    own = OwnImages(labelled="parts/list.csv", unlabelled="parts")
    config = miniatures.prepare_config(own=own)

    prepare.run("parts", tmp_path / "prepare", config, data_root=parts, seed=1)

    tested = {path for path, _ in read_prepared(tmp_path / "prepare", data_root=parts).test}
    assert len(tested) == 2
    assert not tested & set(read_unlabelled(tmp_path / "prepare"))
    assert len(read_unlabelled(tmp_path / "prepare")) == 8
