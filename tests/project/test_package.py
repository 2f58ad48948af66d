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


@pytest.mark.parametrize(
    "statement",
    [
        "import pd_core",
        "import pd_core.pipeline.stages.params, pd_core.pipeline.settings",
        "import pd_core.data.catalog.catalogue, pd_core.data.catalog.readers",
        "import pd_core.data.loading.splits",
        "import pd_core.data.catalog.embedded",
        "import pd_core.core.options, pd_core.pipeline.stages.jobs, pd_core.pipeline.ablations",
        "import pd_core.cli.verbs",
    ],
)
def test_light_modules_import_nothing_heavy(statement: str) -> None:
    assert imported_by(statement).isdisjoint(HEAVY)


def test_a_stage_imports_few_of_our_modules() -> None:
    stage = "pd_core.training.student.stage, pd_core.pipeline.stages.caches, pd_core.mlops.tracking"
    code = f"import pd_core.cli.verbs, {stage}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in done.stdout.split() if name.split(".")[0] == "pd_core"]
    assert len(ours) <= 70, sorted(ours)


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
