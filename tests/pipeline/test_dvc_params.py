"""`dvc exp run -S` changes in `params.yaml` what it sets, and nothing else."""

from difflib import ndiff
from pathlib import Path

import photos
import pytest
from command import promptkd
from dvc.utils.hydra import apply_overrides

from pd_core.pipeline.stages.params import load_params

ROOT = Path(__file__).parents[2]
PROFILES = ("params.yaml", *(f"{file.parent.relative_to(ROOT)}/params.yaml"
                             for file in ROOT.glob("paper/**/params.yaml")
                             if file.parent.name != "protocols"))  # fmt: skip


def changes(before: str, after: str) -> list[str]:
    return [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


@pytest.mark.parametrize("profile", PROFILES)
def test_one_line_changes_for_a_parameter(profile: str, tmp_path: Path) -> None:
    before = (ROOT / profile).read_text()
    file = tmp_path / "params.yaml"
    file.write_text(before)
    apply_overrides(file, ["student.kd_weight=7.5"])
    removed, added = changes(before, file.read_text())
    assert removed.startswith("-   kd_weight: 1000  ")
    assert added.startswith("+   kd_weight: 7.5  ")


@pytest.mark.parametrize("given", ["student.epochs=2", "teacher.crop_scale=[0.5,1.0]"])
def test_a_parameter_of_one_data_set_is_added_to_its_row(given: str, tmp_path: Path) -> None:
    before = (ROOT / "params.yaml").read_text()
    file = tmp_path / "params.yaml"
    file.write_text(before)
    for _ in range(2):  # `++` adds the key, and sets it where it is
        apply_overrides(file, [f"++datasets.embedded_greek.{given}"])
    lines = changes(before, file.read_text())
    assert [line for line in lines if line[0] == "-"] == [
        "-   embedded_greek: {prepare: {}, teacher: {}, student: {}}"
    ]
    stage, key = given.split("=")[0].split(".")
    params = load_params(file)
    of_one, of_all = params.for_dataset("embedded_greek"), params.for_dataset("embedded_latin")
    assert getattr(getattr(of_one, stage), key) != getattr(getattr(of_all, stage), key)


def test_a_new_project_and_its_added_data_sets_have_dvcs_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PD_DATA_ROOT", "PD_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    deep = f"photos, {'of a folder with a long name ' * 4}"
    photos.write(tmp_path / deep)
    given = ("--labelled", f"{deep}/labelled", "--unlabelled", deep)
    embedded = ("--teacher", "embedded-teacher", "--student", "embedded-student")
    assert promptkd(tmp_path, "new", "digits", *given, *embedded).returncode == 0
    project = tmp_path / "digits"
    photos.write(project / "data" / "raw" / deep)
    added = ("--labelled", f"data/raw/{deep}/labelled")
    assert promptkd(project, "data", "add", "more", *added).returncode == 0
    before = (project / "params.yaml").read_text()
    apply_overrides(project / "params.yaml", ["++datasets.more.student.epochs=2"])
    after = (project / "params.yaml").read_text()
    assert changes(before, after) == [
        "-     student: {}", "+     student:", "+       epochs: 2"
    ]  # fmt: skip
