"""After an edit of the package `dvc status` names the stages whose results it may change."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"

pytestmark = [pytest.mark.slow, pytest.mark.ci]

ALL = {
    "prepare", "teacher", "class_vectors", "student", "evaluate", "cross_validate",
    "tuned_student", "report",
}  # fmt: skip
TRAINING = {"teacher", "student", "tuned_student", "cross_validate"}

STATEMENTS = {
    "core/artifacts.py": ALL,
    "core/errors.py": ALL,
    "models/prompts.py": ALL - {"prepare"},
    "data/loading/splits.py": ALL,
    "data/catalog/readers.py": {"prepare"},
    "training/loop/losses.py": TRAINING,
    "training/loop/fit.py": TRAINING,
    "training/teacher/prompt_tuning.py": TRAINING - {"student"} | {"class_vectors"},
    "training/student/distillation.py": {"student", "cross_validate"},
    "evaluation/evaluate.py": {"evaluate", "cross_validate", "tuned_student"},
    "pipeline/stages/params.py": ALL - {"report"},
    "reporting/report.py": {"report"},
    "data/acquire/download.py": set(),
    "mlops/registry/gate.py": set(),
    "mlops/serving/app.py": set(),
    "mlops/tracking/recorder.py": set(),
    "pipeline/dvc.py": set(),
    "pipeline/settings.py": set(),
    "reporting/page.py": set(),
    "cli/verbs.py": set(),
}
"""A file of each room, and the stages that a statement in it marks as changed."""


class Project:
    """A copy of the pipeline for one data set, with outputs that no stage has written."""

    def __init__(self, folder: Path) -> None:
        """Copy, and commit everything as up to date."""
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "pd_core", folder / "pd_core", ignore=ignored)
        for name in ("dvc.yaml", ".dvcignore", "fingerprints"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
        params = YAML().load(ROOT / "params.yaml")
        params["datasets"] = {NAME: params["datasets"][NAME]}
        params["tuned_student"] = params["cross_validate"] = {NAME: {}}
        YAML().dump(params, folder / "params.yaml")
        subprocess.run(["git", "init", "-q", folder], check=True)
        self.repo = Repo.init(str(folder))
        self.hash_code()
        with self.within():
            for stage in self.repo.index.stages:
                for out in stage.outs:
                    path = Path(out.fs_path)
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(f"{out}")
            self.repo.commit(force=True)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Work in the project's folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            yield

    def hash_code(self) -> None:
        """Run the stage `code`, by the code that is there."""
        command = [sys.executable, "-m", "pd_core", "code"]
        subprocess.run(command, cwd=self.folder, check=True, env={"PATH": "/usr/bin:/bin"})

    def changed(self) -> set[str]:
        """Return the stages that `dvc status` names once `code` has run."""
        self.hash_code()
        with self.within():
            named = Repo(str(self.folder)).status()
        return {name.partition("@")[0] for name in named} - {"code"}

    @contextmanager
    def edited(self, file: str, old: str, new: str) -> Iterator[None]:
        """Replace a text in a file of the package, for a while."""
        path = self.folder / "pd_core" / file
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))
        yield
        path.write_text(before)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("status"))


def test_a_project_without_an_edit_is_up_to_date(project: Project) -> None:
    assert project.changed() == set()


def test_dvc_notices_an_edit_before_the_code_is_hashed(project: Project) -> None:
    with project.edited("cli/verbs.py", '"""', '"""A word. '), project.within():
        assert set(Repo(str(project.folder)).status()) == {"code"}


def test_comments_and_docstrings_in_every_room_mark_no_stage(project: Project) -> None:
    with ExitStack() as edits:
        for file in STATEMENTS:
            text = (project.folder / "pd_core" / file).read_text()
            words = text.replace('"""', '"""Other words. ', 1)
            edits.enter_context(project.edited(file, text, f"{words}# A comment.\n"))
        assert project.changed() == set()


@pytest.mark.parametrize("file", STATEMENTS)
def test_a_statement_names_the_stages_of_its_room(project: Project, file: str) -> None:
    text = (project.folder / "pd_core" / file).read_text()
    with project.edited(file, text, f"{text}_further = 1\n"):
        assert project.changed() == STATEMENTS[file]


def test_another_seed_for_every_stage_is_noticed(project: Project) -> None:
    with project.edited("pipeline/stages/jobs.py", "params.run.seed if", "params.run.seed + 1 if"):
        assert project.changed() == ALL - {"report"}


@pytest.mark.parametrize(
    "key", ["run.workers", "run.features_gb", "run.checkpoint_minutes", "teacher.text_memory_gb",
            "evaluate.batch_size"],
)  # fmt: skip
def test_a_parameter_that_changes_no_result_marks_no_stage(project: Project, key: str) -> None:
    path, (block, name) = project.folder / "params.yaml", key.split(".")
    before = path.read_text()
    params = yaml.safe_load(before)
    params[block][name] += 1
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    assert project.changed() == set()
    path.write_text(before)
