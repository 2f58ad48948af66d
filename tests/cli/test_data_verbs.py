"""`promptkd data list`, `verify` and `fingerprint`, on a full-size tree of hard links."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pd_core.cli import data as cli_data
from pd_core.core.errors import BadArtifact, MissingFile, UnknownName

SPLIT_FILE = "split_zhou_DescribableTextures.json"
SIZES = {"train": 60, "val": 24, "test": 36}  # of each of dtd's 47 classes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data root with all of dtd: 5640 pictures."""
    root = tmp_path / "raw"
    images = root / "dtd" / "images"
    images.mkdir(parents=True)
    picture = tmp_path / "red.jpg"
    Image.new("RGB", (16, 16), "red").save(picture)
    lists: dict[str, list[list[Any]]] = {name: [] for name in SIZES}
    for label in range(47):
        name = f"class{label:02d}"
        (images / name).mkdir()
        for split, size in SIZES.items():
            for number in range(size):
                path = f"{name}/{split}_{number}.jpg"
                os.link(picture, images / path)
                lists[split].append([path, label, name])
    (root / "dtd" / SPLIT_FILE).write_text(json.dumps(lists))
    return root


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without what the environment says."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    return folder


def data(*arguments: object) -> Result:
    result = CliRunner().invoke(cli_data.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_whole_data_set_is_one_line_and_status_0(root: Path) -> None:
    result = data("verify", "dtd", "--root", root)

    assert result.exit_code == 0
    assert result.stdout == (
        "dtd: ok, 47 classes, 2820 train, 1128 validation and 1692 test images (split file)\n"
    )


def test_every_problem_is_a_line_and_status_1(root: Path) -> None:
    (root / "dtd" / "images" / "class03").rename(root / "dtd" / "images" / "class_03")
    (root / "dtd" / "images" / "class04" / "val_0.jpg").unlink()

    result = data("verify", "dtd", "--root", root)

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "dtd: image 'class04/val_0.jpg' of class folder 'class04' is missing: "
        "expected 120 images, found 119",
        "dtd: class folder 'class03' is missing: expected 120 images, found 0",
    ]


def test_a_broken_picture_is_found_in_full_only(root: Path) -> None:
    broken = root / "dtd" / "images" / "class00" / "val_0.jpg"
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[:-20])

    assert data("verify", "dtd", "--root", root).exit_code == 0
    result = data("verify", "dtd", "--root", root, "--full", "--workers", "2")

    assert result.exit_code == 1
    assert "dtd: 'class00/val_0.jpg' is damaged" in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_json_holds_everything(root: Path) -> None:
    (root / "dtd" / "images" / "class04" / "val_0.jpg").unlink()

    result = data("verify", "dtd", "eurosat", "--root", root, "--json")
    dtd, eurosat = json.loads(result.stdout)

    assert result.exit_code == 1
    assert dtd["name"] == "dtd"
    assert not dtd["ok"]
    assert dtd["counts"] == {"classes": 47, "train": 2820, "val": 1128, "test": 1692}
    assert len(dtd["problems"]) == 1
    assert eurosat["counts"] == {}
    assert str(root / "eurosat") in eurosat["problems"][0]


def test_the_data_root_may_start_with_the_home_folder_or_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    for given in ("~/photos", "$HOME/photos", "../photos", str(tmp_path / "photos")):
        assert cli_data.places(Path(given))[1].resolve() == tmp_path / "photos"


def test_an_unknown_name_stops_before_anything_is_checked(root: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'dtd'"):
        data("verify", "dtd", "dtd2", "--root", root)


def test_the_data_root_is_that_of_the_environment_or_below_the_profiles_root(
    root: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as change:
        change.setenv("PD_DATA_ROOT", str(root))
        assert data("verify", "dtd").exit_code == 0
    shutil.copy(Path(__file__).parents[2] / "params.yaml", project)
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  root: . ", "  root: .. "))
    (project.parent / "data").mkdir()
    root.rename(project.parent / "data" / "raw")

    assert data("verify", "dtd").exit_code == 0
    assert data("fingerprint", "dtd").exit_code == 0
    assert (project.parent / "fingerprints" / "dtd.json").is_file()


def test_a_fingerprint_is_recorded_and_reports_what_it_misses(root: Path, project: Path) -> None:
    result = data("fingerprint", "dtd", "--root", root)

    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "dtd: level sample, 5641 files, " in result.stdout
    assert "without changing its size" in result.stdout
    content = json.loads((project / "fingerprints" / "dtd.json").read_text())
    assert (content["level"], content["files"]) == ("sample", 5641)

    full = data("fingerprint", "dtd", "--root", root, "--full", "--out", project / "out")
    assert "level full, 5641 files" in full.stdout
    assert "without" not in full.stdout
    assert json.loads((project / "out" / "dtd.json").read_text())["hashed"] == 5641


def test_what_is_not_there_has_no_fingerprint(root: Path, project: Path) -> None:
    with pytest.raises(MissingFile, match="eurosat"):
        data("fingerprint", "eurosat", "--root", root)
    assert not (project / "fingerprints").exists()


def test_an_embedded_data_set_is_recorded_and_checked(project: Path) -> None:
    result = data("fingerprint", "embedded_digits")

    assert "embedded_digits: level full, 1 files" in result.stdout
    assert data("verify", "embedded_digits").exit_code == 0

    path = project / "fingerprints" / "embedded_digits.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "content": "0" * 64}))
    result = data("verify", "embedded_digits")
    assert result.exit_code == 1
    assert "embedded_digits: data set 'embedded_digits' is not what" in result.stdout


def rows(*arguments: object) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(data("list", "--json", *arguments).stdout)}


def test_the_list_shows_locations_and_states(root: Path) -> None:
    for folder in ("eurosat/2750", "food-101", "oxford_pets/images"):
        (root / folder).mkdir(parents=True)
    data("fingerprint", "dtd", "--root", root)

    listed = rows("--root", root)

    assert len(listed) >= 22
    assert listed["dtd"] == {
        "name": "dtd",
        "classes": 47,
        "images": 5640,
        "where": "dtd",
        "state": "there",
        "fingerprint": "sample",
    }
    assert listed["embedded_greek"]["state"] == listed["embedded_greek"]["where"] == "embedded"
    assert listed["caltech101"]["state"] == "absent"
    assert listed["food101"]["state"] == "incomplete: no image folder"
    assert listed["oxford_pets"]["state"] == "incomplete: no labels"
    assert listed["caltech101"]["fingerprint"] is None


def test_the_table_shows_every_data_set_on_a_line(root: Path) -> None:
    data("fingerprint", "dtd", "--root", root)
    lines = data("list", "--root", root).stdout.splitlines()

    (dtd,) = [line for line in lines if " dtd " in line]
    assert "5,640" in dtd
    assert "there" in dtd
    assert lines[lines.index(dtd) + 1].strip() == "sample"
    assert "fingerprint" in lines[1]
    assert any("embedded_greek" in line for line in lines)


def test_a_broken_fingerprint_is_named(root: Path, project: Path) -> None:
    (project / "fingerprints").mkdir()
    (project / "fingerprints" / "dtd.json").write_text("{}")

    with pytest.raises(BadArtifact, match="dtd.json' is no fingerprint"):
        data("list", "--root", root)
