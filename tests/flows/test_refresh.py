"""The flow `refresh` reruns changed data sets only, and refuses changed images."""

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
    output = _refresh(folder)
    assert _ran(output) == ["prepare@embedded_greek"]  # its output is as before
    assert "1 data sets had changed" in output
    output = _refresh(folder)
    assert _ran(output) == []
    assert "0 data sets had changed" in output


def test_images_that_differ_from_their_fingerprint_are_refused_where_they_are(
    tmp_path: Path,
) -> None:
    _own_images(tmp_path)
    assert refresh.find_changes(tmp_path)[1] == {}
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "raw" / "mine" / "a" / "new.png")
    changes, refused = refresh.find_changes(tmp_path)
    assert list(changes) == ["mine"]  # it has never run
    assert "fingerprint" in refused["mine"]
    assert "`promptkd data fingerprint mine`" in refused["mine"]
    (tmp_path / "data" / "raw" / "mine").rename(tmp_path / "elsewhere")
    assert refresh.find_changes(tmp_path)[1] == {}


def test_changed_code_is_hashed_before_dvc_is_asked_what_changed(tmp_path: Path) -> None:
    _own_images(tmp_path)
    yaml = YAML()
    pipeline = yaml.load(tmp_path / "dvc.yaml")
    pipeline["stages"]["code"] = {"cmd": "cp source code", "deps": ["source"], "outs": ["code"]}
    pipeline["stages"]["evaluate"]["do"]["deps"].append("code")
    yaml.dump(pipeline, tmp_path / "dvc.yaml")
    (tmp_path / "source").write_text("1")
    assert dvc(tmp_path, "repro").returncode == 0
    assert refresh.find_changes(tmp_path)[0] == {}
    (tmp_path / "source").write_text("2")
    assert list(refresh.find_changes(tmp_path)[0]) == ["mine"]


def _refresh(folder: Path) -> str:
    """Run the flow without a server; return its output."""
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


def _ran(output: str) -> list[str]:
    return re.findall("Running stage '(.*)'", output)


def _own_images(folder: Path) -> None:
    """Make a project with a data set of a user's, and its fingerprint."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    own = {"own": {"labelled": "mine"}}
    params["datasets"] = {"mine": {"prepare": own, "teacher": {}, "student": {}}}
    yaml.dump(params, folder / "params.yaml")
    stage = {"cmd": "true", "deps": ["fingerprints/mine.json"]}
    yaml.dump({"stages": {"evaluate": {"foreach": {"mine": 1}, "do": stage}}}, folder / "dvc.yaml")
    for name in "ab":
        images = folder / "data" / "raw" / "mine" / name
        images.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(images / "old.png")
    assert dvc(folder, "init", "-q", "--no-scm").returncode == 0
    assert promptkd(folder, "data", "fingerprint", "mine").returncode == 0
