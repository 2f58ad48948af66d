"""What has changed runs again, and nothing else; pictures that nobody has looked at are refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from agents import DATASETS, ROOT, STAGES, environment, waiting_project
from command import dvc, promptkd
from PIL import Image
from ruamel.yaml import YAML

from flows import refresh


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_only_the_data_set_that_has_changed_runs_again(tmp_path: Path) -> None:
    folder = waiting_project(tmp_path / "project")
    ran = _ran(_refresh(folder))
    assert sorted(ran) == sorted(f"{stage}@{name}" for stage in STAGES for name in DATASETS)
    with (folder / "fingerprints" / "embedded_greek.json").open("a") as file:
        file.write("\n")
    said = _refresh(folder)
    assert _ran(said) == ["prepare@embedded_greek"]  # what it writes is as before
    assert "1 data sets had changed, all is up to date" in said
    said = _refresh(folder)
    assert _ran(said) == []
    assert "0 data sets had changed" in said


def test_pictures_that_are_not_those_of_their_fingerprint_are_named(tmp_path: Path) -> None:
    _own_pictures(tmp_path)
    assert refresh.look(tmp_path)[1] == {}
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "raw" / "mine" / "a" / "new.png")
    changes, others = refresh.look(tmp_path)
    assert list(changes) == ["mine"]  # it has never run
    assert "data set 'mine' is not what its fingerprint says" in others["mine"]
    assert "`promptkd data fingerprint mine` and commit it" in others["mine"]


def test_a_machine_without_the_pictures_has_nothing_to_compare(tmp_path: Path) -> None:
    _own_pictures(tmp_path)
    (tmp_path / "data" / "raw" / "mine").rename(tmp_path / "elsewhere")
    assert refresh.look(tmp_path)[1] == {}


def test_changed_code_is_hashed_before_dvc_is_asked_what_changed(tmp_path: Path) -> None:
    _own_pictures(tmp_path)
    yaml = YAML()
    pipeline = yaml.load(tmp_path / "dvc.yaml")
    pipeline["stages"]["code"] = {"cmd": "cp source code", "deps": ["source"], "outs": ["code"]}
    pipeline["stages"]["evaluate"]["do"]["deps"].append("code")
    yaml.dump(pipeline, tmp_path / "dvc.yaml")
    (tmp_path / "source").write_text("1")
    assert dvc(tmp_path, "repro").returncode == 0
    assert refresh.look(tmp_path)[0] == {}
    (tmp_path / "source").write_text("2")
    assert list(refresh.look(tmp_path)[0]) == ["mine"]


def _refresh(folder: Path) -> str:
    """Run the flow without a server; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.refresh"],
        cwd=folder,
        env=environment(folder, PREFECT_HOME=str(folder.parent / "home")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _ran(said: str) -> list[str]:
    return re.findall("Running stage '(.*)'", said)


def _own_pictures(folder: Path) -> None:
    """Make a project with a data set of a user's, and its fingerprint."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    own = {"own": {"labelled": "mine"}}
    params["datasets"] = {"mine": {"prepare": own, "teacher": {}, "student": {}}}
    yaml.dump(params, folder / "params.yaml")
    stage = {"cmd": "true", "deps": ["fingerprints/mine.json"]}
    yaml.dump({"stages": {"evaluate": {"foreach": {"mine": 1}, "do": stage}}}, folder / "dvc.yaml")
    for name in "ab":
        place = folder / "data" / "raw" / "mine" / name
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "old.png")
    assert dvc(folder, "init", "-q", "--no-scm").returncode == 0
    assert promptkd(folder, "data", "fingerprint", "mine").returncode == 0
