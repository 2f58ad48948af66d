"""A stage depends on exactly the code that its outputs depend on."""

from pathlib import Path

import pytest
import yaml

from pd_core.pipeline.code_hash import STAGE_MODULES, stage_code

ROOT = Path(__file__).parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = [stage for stage in STAGE_MODULES if not stage.endswith("_report")]
"""Without the reports of ablations/ and protocols/, which their own tests compare."""


def code_deps(stage: str) -> list[str]:
    block = PIPELINE[stage]
    deps = block.get("do", block)["deps"]
    prefix = "${profile.root}/"
    return [dep.removeprefix(prefix) for dep in deps if dep.endswith(".py")]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_lists_the_import_closure_of_each_stage(stage: str) -> None:
    closure = [path.relative_to(ROOT).as_posix() for path in stage_code(stage)]
    assert sorted(code_deps(stage)) == sorted(closure)


def test_every_stage_of_dvc_yaml_has_a_module() -> None:
    assert set(PIPELINE) == set(STAGES)


def stages_with(module: str) -> set[str]:
    return {stage for stage in STAGES if f"pd_core/{module}" in code_deps(stage)}


# `evaluate` trains too, where it cross-validates.


def test_editing_the_losses_reruns_what_trains_only() -> None:
    assert stages_with("losses.py") == {"teacher", "student", "tuned_student", "evaluate"}


def test_editing_the_distillation_reruns_the_student_and_what_follows_only() -> None:
    for module in ("distill.py", "supervision.py", "selection.py"):
        assert stages_with(module) == {"student", "evaluate"}


def test_editing_the_tuning_reruns_what_tunes_only() -> None:
    for module in ("tuning.py", "pretrain.py", "models/original.py"):
        assert stages_with(module) == {"teacher", "tuned_student", "evaluate"}


def test_editing_how_files_are_found_reruns_the_preparation_only() -> None:
    for module in ("readers.py", "own.py", "fingerprint.py", "annotations.py"):
        assert stages_with(f"data/{module}") == {"prepare"}


def test_the_preparation_depends_on_the_fingerprint_in_place_of_the_pictures() -> None:
    assert "${profile.root}/fingerprints/${key}.json" in PIPELINE["prepare"]["do"]["deps"]


@pytest.mark.parametrize("module", ["report.py", "report_pictures.py", "results.py"])
def test_editing_the_report_reruns_the_report_only(module: str) -> None:
    assert stages_with(module) == {"report"}


@pytest.mark.parametrize(
    "module",
    [
        "cli.py",
        "cli_data.py",
        "cli_fetch.py",
        "cli_import.py",
        "jobs.py",
        "params.py",
        "blocks.py",
        "settings.py",
        "tracking/live.py",
        "ablations.py",
        "ablation_report.py",
        "data/fetch.py",
        "data/mirror.py",
        "data/verify.py",
    ],
)
def test_editing_what_is_around_the_stages_reruns_none(module: str) -> None:
    assert stages_with(module) == set()


def test_imports_inside_functions_count() -> None:
    names = {path.name for path in stage_code("teacher")}
    assert "embedded.py" in names  # models/clip.py imports it where it is needed


def test_every_computing_stage_depends_on_its_weights() -> None:
    for stage in ("teacher", "class_vectors", "student", "evaluate"):
        assert "${teacher.weights}" in PIPELINE[stage]["do"]["deps"]
    for stage in ("student", "evaluate", "tuned_student"):
        assert "${student.weights}" in PIPELINE[stage]["do"]["deps"]


def test_the_baseline_depends_on_no_weights_of_the_teacher() -> None:
    assert "${teacher.weights}" not in PIPELINE["tuned_student"]["do"]["deps"]
