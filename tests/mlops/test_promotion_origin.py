"""A version's descent, and how its answers are compared with another one's."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import git_repository
import numpy as np
import pytest
import registered
import yaml
from promoting import NAME
from registered import good, older_tags, own_project, project, publish, store
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from pd_core.core.errors import PdError
from pd_core.evaluation.significance import Paired
from pd_core.mlops import tracking
from pd_core.mlops.registry import Version, origin
from pd_core.mlops.registry.trial import Predictions, compare
from pd_core.mlops.tracking import write_lineage
from pd_core.pipeline import code_hash
from pd_core.pipeline.provenance import Lineage

__all__ = ["good", "own_project", "project", "store"]  # fixtures

# SQLAlchemy's, about MLflow's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")


# Comparing


def naive_lower_bound(gained: int, lost: int, n: int, confidence: float) -> float:
    """Find Tango's bound on a grid, its restricted likelihood maximised by search."""
    for difference in np.arange(-0.999, 1, 0.001):
        low, high = max(0.0, -difference), (1 - difference) / 2

        def minus_likelihood(share: float, difference: float = difference) -> float:
            parts = (gained, share + difference), (lost, share), (
                n - gained - lost, 1 - 2 * share - difference,
            )  # fmt: skip
            return -float(sum(count * np.log(max(part, 1e-12)) for count, part in parts if count))

        share = minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded").x
        error = np.sqrt(max(n * (2 * share + difference - difference**2), 1e-12))
        if (gained - lost - n * difference) / error <= norm.ppf(confidence):
            return float(difference)
    return 1.0


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(3, 8, 60), (0, 5, 40), (7, 0, 30), (20, 20, 90)]
)
def test_the_lower_bound_is_that_of_the_restricted_likelihood(
    gained: int, lost: int, n: int
) -> None:
    found = Paired(pictures=n, gained=gained, lost=lost, both=0)
    assert found.lower_bound(0.95) == pytest.approx(
        naive_lower_bound(gained, lost, n, 0.95), abs=0.002
    )


def test_the_same_answers_are_no_worse_whatever_the_margin() -> None:
    scores = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    answers = Predictions(("a", "b", "c"), scores)
    found = compare(answers, answers, random.Random(0).choices("abc", k=40))
    assert found is not None
    assert (found.gained, found.lost) == (0, 0)
    assert (found.lower_bound(0.999), found.mcnemar()) == (0.0, 1.0)


def test_both_choose_among_the_names_that_they_share() -> None:
    """A new class must not cost the old ones, nor a removed one help them."""
    first = Predictions(("b", "a", "new"), np.array([[0.3, 0.1, 0.6], [0.1, 0.2, 0.7]], np.float32))
    second = Predictions(
        ("gone", "a", "b"), np.array([[0.9, 0.0, 0.1], [0.8, 0.0, 0.2]], np.float32)
    )
    found = compare(first, second, ["b", "a"])
    assert found is not None
    assert (found.classes, found.pictures, found.gained, found.lost, found.both) == (2, 2, 1, 0, 1)


def test_pictures_of_other_classes_and_those_not_answered_do_not_count() -> None:
    first = Predictions(("a", "b"), np.array([[1, 0], [np.nan, np.nan], [1, 0]], np.float32))
    second = Predictions(("a", "c"), np.array([[1, 0], [1, 0], [1, 0]], np.float32))
    found = compare(first, second, ["a", "a", "b"])
    assert found is not None
    assert (found.classes, found.pictures, found.gained, found.lost, found.both) == (1, 1, 0, 0, 1)
    assert compare(first, second, ["c", "b", "b"]) is None


# Lineage


def faults(project: Path, tags: dict[str, str]) -> list[str]:
    """Return the faults of a version whose hashes are tags, so that no store is needed."""
    version = Version(NAME, 1, tags, (), 0.0)
    return origin.faults("", version, project=project, profile="quickstart")


def faults_of(version: Version, store: str, project: Path) -> list[str]:
    return origin.faults(store, version, project=project, profile="quickstart")


def test_a_version_that_dvc_lock_and_its_commit_agree_with_has_no_fault(own_project: Path) -> None:
    tags = older_tags(own_project)
    assert faults(own_project, tags) == []
    (own_project / "dvc.lock").write_text((own_project / "dvc.lock").read_text() + "\n")
    assert faults(own_project, older_tags(own_project)) == []  # the lock itself may change
    registered.commit(own_project)  # and so may later commits
    assert faults(own_project, tags) == []


def test_changes_that_are_not_committed_are_a_fault(own_project: Path) -> None:
    with (own_project / "params.yaml").open("a") as file:
        file.write("# a remark\n")
    (fault,) = faults(own_project, older_tags(own_project))
    assert "not committed" in fault


def run_with_other_code(project: Path) -> None:
    code = project / "train.py"
    committed = code.read_text()
    code.write_text("print('trained otherwise')\n")
    registered.write_lock(project)
    code.write_text(committed)


def read_another_teacher(project: Path) -> None:
    lock = project / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    for dep in content["stages"]["student@tiny"]["deps"]:
        if dep["path"] == registered.OUTPUTS[1]:
            dep["md5"] = "another"
    lock.write_text(yaml.safe_dump(content))


def train_again(project: Path) -> None:
    (project / registered.OUTPUTS[3]).write_text("trained again")
    registered.write_lock(project)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (run_with_other_code, "1 files, as train.py, were others"),
        (lambda it: registered.write_lock(it, {"student.lr": 0.1}), "student.lr of params.yaml"),
        (read_another_teacher, f"another {registered.OUTPUTS[1]}"),
        (train_again, registered.OUTPUTS[3]),
        (lambda it: (it / registered.OUTPUTS[0] / "more.json").write_text(""), "`dvc checkout`"),
        (lambda it: (it / "dvc.lock").unlink(), "no prepare@tiny, teacher@tiny, class_vectors@"),
    ],
)
def test_a_project_that_is_not_what_the_version_comes_from_is_a_fault(
    own_project: Path, change: Callable[[Path], object], words: str
) -> None:
    tags = older_tags(own_project)
    change(own_project)
    (fault,) = faults(own_project, tags)
    assert words in fault


@pytest.mark.parametrize(
    ("committed", "same"), [("RATE = 1  # of learning", True), ("RATE = 2", False)]
)
def test_code_that_was_hashed_is_compared_with_that_of_the_commit(
    own_project: Path, committed: str, *, same: bool
) -> None:
    module = own_project / "pd_core" / "core" / "rates.py"
    module.parent.mkdir(parents=True)
    module.write_text(committed)
    git_repository.commit(own_project)
    ran = code_hash.listing_of("core", {"pd_core/core/rates.py": b"RATE = 1"})
    registered.write_lock(own_project, code={"data/code/core.txt": code_hash.md5_of(ran)})

    result = faults(own_project, older_tags(own_project))

    assert ["data/code/core.txt" in fault for fault in result] == ([] if same else [True])


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ({"git_commit": "1" * 40}, "commit 111111111111 is not in"),
        ({"git_commit": "none"}, "commit none is not in"),
        ({"git_dirty": ""}, "not committed"),
        ({"profile": "paper"}, "profile 'paper'"),
        ({f"out:{registered.OUTPUTS[0]}": ""}, "1 of the outputs"),
    ],
)
def test_tags_that_do_not_fit_are_a_fault(project: Path, tags: dict[str, str], fault: str) -> None:
    (line,) = faults(project, {**older_tags(project), **tags})
    assert fault in line


def test_a_broken_dvc_lock_is_one_line(own_project: Path) -> None:
    (own_project / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {a: [}\n")
    with pytest.raises(PdError, match=r"dvc\.lock is not YAML"):
        faults(own_project, older_tags(own_project))


def test_a_lineage_that_was_changed_after_registration_is_a_fault(
    store: str, project: Path, good: Path
) -> None:
    version = publish(store, good, registered.lineage(project))
    assert faults_of(version, store, project) == []
    write_lineage(tracking.client(store), str(version.run_id), registered.dirty(project), NAME)
    (fault,) = faults_of(version, store, project)
    assert "lineage.json" in fault


@pytest.mark.parametrize("content", ["{", "[]", '{"other": 1}'])
def test_a_lineage_that_is_none_is_a_fault(
    store: str, project: Path, good: Path, content: str
) -> None:
    version = publish(store, good, registered.lineage(project))
    file = f"{NAME}/{tracking.LINEAGE_FILE}"
    tracking.client(store).log_text(str(version.run_id), content, file)
    (fault,) = faults_of(version, store, project)
    assert "lineage.json" in fault


def test_changed_classes_descend_from_their_parent_and_its_teacher(
    store: str, project: Path, good: Path
) -> None:
    made = registered.lineage(project)
    other = replace(made, outs={**made.outs, registered.OUTPUTS[1]: "0" * 32})
    publish(store, good, made)

    def child(parent: str, lineage: Lineage = made) -> list[str]:
        version = publish(store, good, lineage, kind="classes-add", parent=parent)
        return faults_of(version, store, project)

    assert child("1") == []
    assert child("2") == []  # a child's child
    for parent, lineage, fault in (
        ("7", made, "version '7', is not in the registry"),
        ("", made, "version '', is not in the registry"),
        ("6", made, "version 6, is no older"),
        ("1", other, "its teacher is 0000"),
    ):
        (line,) = child(parent, lineage)
        assert fault in line
    publish(store, good, registered.dirty(project))
    (line,) = child("8")
    assert line.startswith("its parent, version 8: ")
    assert "not committed" in line
