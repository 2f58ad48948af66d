"""A rehearsal measures real stages and estimates the others from them."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pd_core.cli import verbs
from pd_core.cli.rehearse import duration
from pd_core.pipeline.stages.params import load_params
from pd_core.rehearsal.measure import spread
from pd_core.rehearsal.rehearse import profile_items, representatives

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the shipped profile, and make it the current one."""
    for name in ("pd_core", "fingerprints"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_smallest_and_largest_data_sets_of_each_kind_are_measured() -> None:
    params = load_params(ROOT / "params.yaml")

    chosen = representatives(profile_items(params, params.datasets), few=False)

    # embedded_digits has batches of its own, and its own steps therefore.
    names = [item.params.name for item in chosen]
    assert set(names) == {"embedded_digits", "embedded_latin", "embedded_symbols"}


def test_in_few_steps_data_sets_of_many_classes_are_not_measured() -> None:
    params = load_params(ROOT / "paper" / "params.yaml")
    items = profile_items(params, ("imagenet", "eurosat", "stanford_cars"))

    few, all_sizes = (representatives(items, few=few) for few in (True, False))

    assert {item.params.name for item in few} == {"eurosat", "stanford_cars"}
    assert {item.params.name for item in all_sizes} == {"eurosat", "imagenet"}


def test_in_few_steps_the_student_is_measured_on_the_smallest_data_set_only() -> None:
    params = load_params(ROOT / "paper" / "params.yaml")
    items = profile_items(params, ("dtd", "eurosat"))

    stages = {item.name: item.stages for item in representatives(items, few=True)}

    assert stages == {
        "eurosat": items[1].stages,
        "dtd": ("prepare", "teacher", "class_vectors", "tuned_student"),
    }


def test_a_list_is_shortened_evenly() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.7, "42 s"), (600.0, "10 min"), (19_080.0, "5.3 h")]
)
def test_durations_have_two_or_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_every_stage_of_a_data_set_is_measured_and_extrapolated(project: Path) -> None:
    result = CliRunner().invoke(
        _app(), ["rehearse", "embedded_digits", "--steps", "5", "--json"], catch_exceptions=False
    )

    assert result.exit_code == 0, result.output
    digits = json.loads(result.stdout[result.stdout.index("{") :])["rows"][0]
    stages = digits["stages"]
    assert list(stages) == ["prepare", "teacher", "class_vectors", "student", "evaluate"]
    assert (stages["teacher"]["measured"], stages["teacher"]["steps"]) == (10, 10 * 80 // 4)
    assert (stages["student"]["measured"], stages["student"]["steps"]) == (10, 12 * (900 // 8))
    assert digits["cpu_seconds"] > stages["student"]["cpu_seconds"] > 0
    assert digits["memory"] > 100 * 2**20
    assert not list(project.glob("data"))  # the project is as it was


def _app() -> typer.Typer:
    verbs.add_groups()
    return verbs.app
