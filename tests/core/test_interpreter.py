"""A Python without the requirements is named in one line, wherever it is started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BARE = Path(sys.executable).resolve()  # outside its virtual environment it has no packages


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell whose `python3` is has no packages."""
    path = os.pathsep.join([str(bare(folder)), "/usr/bin", "/bin"])
    environment = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def bare(folder: Path) -> Path:
    """Make a folder of programs with a Python that has no packages."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "python3").unlink(missing_ok=True)
    (programs / "python3").symlink_to(BARE)
    return programs


@pytest.mark.parametrize("module", ["pd_core", "flows.benchmark", "flows.agent"])
def test_a_python_without_the_packages_is_named_in_one_line(module: str, tmp_path: Path) -> None:
    command = f"PYTHONPATH={ROOT} python3 -m {module}"
    done = run(tmp_path, "bash", "-c", command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: '{tmp_path / 'programs' / 'python3'}' lacks")
    assert "torch" in line
    assert "bin/activate`" in line


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a DVC project whose one stage is started as ours are."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    command = f"PYTHONPATH={ROOT} python3 -m pd_core --help > help.txt"
    stage = {"cmd": command, "outs": ["help.txt"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"help": stage}}))
    return tmp_path


def test_promptkd_repro_runs_stages_with_its_own_python(project: Path) -> None:
    done = run(project, str(Path(sys.executable).parent / "promptkd"), "repro")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in (project / "help.txt").read_text()


def test_dvc_by_its_path_says_which_python_it_started_and_no_traceback(project: Path) -> None:
    done = run(project, str(Path(sys.executable).parent / "dvc"), "repro")
    assert done.returncode != 0
    assert "lacks" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_without_git_nothing_is_installed_and_the_remedy_is_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "dvc.yaml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    done = run(tmp_path, "make", "quickstart")
    assert done.returncode == 2
    line, *others = done.stderr.splitlines()
    assert line.startswith(f"error: '{tmp_path}' is no git repository")
    assert "git init" in line
    assert all(other.startswith("make: ***") for other in others)
    assert not done.stdout
