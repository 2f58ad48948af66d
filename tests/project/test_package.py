import os
import subprocess
import sys
from pathlib import Path

import pytest

import pd_core

PROJECT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "open_clip", "mlflow", "prefect")


def imported_by(statement: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_light_modules_import_nothing_heavy() -> None:
    statement = (
        "import pd_core, pd_core.pipeline.stages.params, pd_core.pipeline.settings,"
        " pd_core.data.catalog.catalogue, pd_core.data.catalog.readers,"
        " pd_core.data.loading.splits, pd_core.data.catalog.embedded, pd_core.core.options,"
        " pd_core.pipeline.stages.jobs, pd_core.pipeline.ablations, pd_core.cli.verbs"
    )
    assert imported_by(statement).isdisjoint(HEAVY)


def test_a_stage_imports_few_of_our_modules_and_neither_it_nor_prediction_imports_mlflow() -> None:
    stage = "pd_core.training.student.stage, pd_core.pipeline.stages.jobs, pd_core.mlops.tracking"
    code = (
        f"import pd_core.cli.verbs, {stage}, sys; print(*sys.modules);"
        "import pd_core.mlops.predictor; print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, mlflow = done.stdout.splitlines()
    ours = [name for name in modules.split() if name.split(".")[0] == "pd_core"]
    assert len(ours) <= 80, sorted(ours)
    assert mlflow == "False"


def test_a_stage_loads_no_other_verbs(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules));"
        "from pd_core.cli import main; sys.argv = ['promptkd', 'prepare', 'unknown']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pd_core.cli.verbs" in done.stdout.split()
    assert "pd_core.cli.registry" not in done.stdout.split()


def test_public_names_are_exactly_these() -> None:
    assert pd_core.__all__ == ["ClassVectors", "PdError", "Student", "Teacher", "load_student"]
    assert dir(pd_core) == pd_core.__all__


@pytest.mark.parametrize("name", pd_core.__all__)
def test_public_names_lead_to_what_they_name(name: str) -> None:
    assert getattr(pd_core, name).__name__ == name


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Studnet'"):
        _ = pd_core.Studnet


def test_help_does_not_import_optuna() -> None:
    code = "from pd_core.cli import verbs; verbs.add_groups(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pd_core.cli.tune" in done.stdout.split()
    assert "optuna" not in done.stdout.split()
