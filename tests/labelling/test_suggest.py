"""`promptkd suggest` lists unlabelled images to label next, and shows them on a contact sheet."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import labelling_project
import pytest
import tiny
from command import promptkd
from labelling_project import NAME, job
from PIL import Image

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadData, BadParams
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.catalog.own import read_own
from pd_core.data.loading.prepared import read_prepared
from pd_core.labelling import pool

LIST = Path("data") / "suggest" / f"{NAME}.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelling_project.run_stages(
        labelling_project.write(tmp_path_factory.mktemp("labels") / "project")
    )


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in the project, which has no list yet."""
    monkeypatch.chdir(made)
    for variable in ("PD_DATA_ROOT", "PD_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    with tiny.quick_stages(*labelling_project.TRAININGS):
        yield made
    LIST.unlink(missing_ok=True)


def suggested(project: Path, *options: str) -> list[dict[str, str]]:
    done = promptkd(project, "suggest", NAME, *options)
    assert done.returncode == 0, done.stderr
    with (project / LIST).open(newline="") as file:
        return list(csv.DictReader(file))


def refusal(project: Path, *arguments: str) -> str:
    done = promptkd(project, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_list_has_the_predicted_class_both_confidences_and_an_empty_label(
    project: Path,
) -> None:
    rows = suggested(project, "--count", "6")
    assert len({row["file"] for row in rows}) == 6
    for row in rows:
        assert list(row) == [
            "file", "predicted", "teacher_confidence", "student_confidence", "label",
        ]  # fmt: skip
        assert row["predicted"] in read_prepared(job().prepared, data_root=job().data_root).classes
        assert 0 < float(row["teacher_confidence"]) <= 1
        assert (project / "data" / "raw" / NAME / row["file"]).is_file()
        assert row["label"] == ""


def test_no_labelled_or_test_image_is_ever_suggested(project: Path) -> None:
    mine = job()
    content = read_prepared(mine.prepared, data_root=mine.data_root)
    paths = pool.unlabelled_paths(mine, content)
    own = mine.params.prepare.own
    assert own is not None
    splits = read_own(own, mine.data_root)
    labelled = {item.path for items in splits.lists.values() for item in items}
    assert len(content.few_shot) < len(splits.train)  # some labels are left over
    assert labelled.isdisjoint(paths)
    assert "unlabelled/copy-of-test.png" not in paths
    rows = suggested(project, "--count", str(len(paths)), "--method", "random")
    assert {row["file"] for row in rows} == {*paths}


def test_copies_are_suggested_once_and_those_of_labelled_images_never(project: Path) -> None:
    rows = suggested(project, "--count", "35")
    files = {row["file"].removeprefix("unlabelled/") for row in rows}
    assert len({"0-010.png", "copy-1.png", "copy-2.png"} & files) == 1
    assert "copy-of-label.png" not in files


def test_the_same_seed_gives_the_same_list_from_the_cache_as_well(project: Path) -> None:
    first = suggested(project, "--count", "8")
    assert suggested(project, "--count", "8") == first
    assert suggested(project, "--count", "8", "--method", "entropy") != first


def test_the_contact_sheet_shows_all_of_them(project: Path) -> None:
    rows = suggested(project, "--count", "8")
    with Image.open(project / LIST.with_suffix(".jpg")) as sheet:
        assert sheet.height == 102 * len({row["predicted"] for row in rows})


def test_a_list_with_labels_is_not_replaced(project: Path) -> None:
    suggested(project, "--count", "4")
    text = LIST.read_text().replace(",\n", ",digit one\n", 2)  # one is the header's
    LIST.write_text(text)
    assert "has labels, which would be lost" in refusal(project, "suggest", NAME, "--count", "4")
    assert LIST.read_text() == text


def test_more_images_than_there_are_are_refused(project: Path) -> None:
    error = refusal(project, "suggest", NAME, "--count", "999")
    assert "count = 999: 'mine' has 35 images that may be labelled" in error


def test_a_data_set_whose_stages_did_not_run_is_refused_with_the_command(project: Path) -> None:
    assert "dvc repro prepare@mine-7" in refusal(
        project, "suggest", NAME, "--count", "4", "--seed", "7"
    )


@pytest.mark.usefixtures("project")
def test_images_predicted_as_novel_classes_are_no_candidates() -> None:
    everything = pool.read_pool(job(), NO_HOOKS)
    content = json.loads((job().prepared / "split.json").read_text())
    base = {**content, "protocol": "base_to_novel"}
    base["few_shot"] = [row for row in base["few_shot"] if row[1] < base["base_classes"]]
    try:
        (job().prepared / "split.json").write_text(json.dumps(base))
        write_sums(job().prepared)
        halved = pool.read_pool(job(), NO_HOOKS)
    finally:
        (job().prepared / "split.json").write_text(json.dumps(content))
        write_sums(job().prepared)
    assert {*halved.predicted} <= {*content["classes"][:2]} < {*everything.predicted}


@pytest.mark.usefixtures("project")
def test_a_transductive_data_set_has_no_images_to_label() -> None:
    mine = job()
    prepare = mine.params.prepare.model_copy(update={"transductive": True})
    params = mine.params.model_copy(update={"prepare": prepare})
    content = read_prepared(mine.prepared, data_root=mine.data_root)
    with pytest.raises(BadParams, match="are its test images, which get no labels"):
        pool.unlabelled_paths(replace(mine, params=params), content)


@pytest.mark.usefixtures("project")
def test_a_data_set_whose_images_all_have_labels_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = read_prepared(job().prepared, data_root=job().data_root)
    monkeypatch.setattr(
        pool, "read_unlabelled", lambda _: tuple(path for path, _ in content.few_shot)
    )
    with pytest.raises(BadData, match="has no unlabelled images"):
        pool.unlabelled_paths(job(), content)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("labelled", ["few_shot", "test"])
def test_images_with_a_label_are_no_candidates_though_they_are_listed_as_unlabelled(
    labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = job()  # as of the catalogue, where all training images are among the unlabelled ones
    prepare = mine.params.prepare.model_copy(update={"own": None})
    params = mine.params.model_copy(update={"prepare": prepare})
    content = read_prepared(mine.prepared, data_root=mine.data_root)
    paths = [path for path, _ in getattr(content, labelled)]
    monkeypatch.setattr(pool, "read_unlabelled", lambda _: ("other.png", *paths))

    assert paths
    assert pool.unlabelled_paths(replace(mine, params=params), content) == ("other.png",)
