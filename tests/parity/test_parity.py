"""Our training code gives the numbers of the paper's original code."""

from pathlib import Path

import checks
import pytest
import traces
import trainings


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        pytest.param(folder, part, id=f"{folder.name}-{part}")
        for folder in traces.trace_folders()
        for part in checks.applicable(traces.load(folder))
    ],
)
def test_our_numbers_are_those_of_the_original(folder: Path, part: str) -> None:
    differences = checks.ALL[part](traces.load(folder))

    differences.verify()
    if folder.parent == traces.OWN:
        assert {difference.part for difference in differences.excused} <= {"distillation loss"}


@pytest.mark.parametrize("name", ["A", "D"])
def test_every_recorded_step_is_compared(name: str) -> None:
    trace = traces.load(traces.OWN / name)

    assert trace.teacher_steps == trace.student_steps == [1, 2, 3, 4, 5, 6]


def test_our_published_numbers_are_those_of_the_original() -> None:
    info = traces.load(traces.OWN / "A").info
    teacher, student = trainings.PAPER.teacher, trainings.PAPER.student

    assert teacher.lr == info["config"]["t_lr"]
    assert teacher.templates == info["templates"]
    assert student.lr == info["config"]["k_lr"]
    assert student.temperature == info["temperature"]
    assert student.kd_weight == info["kd_weight"]
    for config in (teacher, student):
        for ours, original in (
            ("momentum", "momentum"),
            ("weight_decay", "weight_decay"),
            ("warmup_epochs", "warmup_epoch"),
            ("warmup_lr", "warmup_cons_lr"),
        ):
            assert getattr(config, ours) == info["optim"][original]


def test_the_recordings_of_this_repository_are_found() -> None:
    own = {folder.name for folder in traces.trace_folders() if folder.parent == traces.OWN}

    assert own == {"A", "D"}
    for name in own:
        assert checks.applicable(traces.load(traces.OWN / name)) == list(checks.ALL)
    assert traces.OWN / "splits.json" in traces.files("splits.json")
    assert any(traces.OWN in path.parents for path in traces.files("transforms.safetensors"))


def test_a_further_folder_of_recordings_is_picked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any name").mkdir()
    (tmp_path / "any name" / "trace.json").write_text("{}")
    (tmp_path / "no recording").mkdir()
    monkeypatch.setenv("PD_PARITY_DIR", str(tmp_path))

    further = [folder for folder in traces.trace_folders() if folder.parent == tmp_path]

    assert further == [tmp_path / "any name"]


@pytest.mark.parametrize("root", traces.folders(), ids=lambda root: root.name)
def test_every_folder_that_is_named_holds_recordings(root: Path) -> None:
    kinds = ("trace.json", "splits.json", "transforms.safetensors")

    assert any(root in path.parents for kind in kinds for path in traces.files(kind))
