"""A version's descent, and how its answers are compared with another one's."""

import random
from pathlib import Path

import git_repository
import numpy as np
import pytest
import registered
import yaml
from promoting import NAME
from registered import good, own_project, project, publish, store
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from pd_core.core.errors import PdError
from pd_core.mlops import registry
from pd_core.mlops.registry import Version, origin
from pd_core.mlops.registry.trial import Answers, Comparison, compare
from pd_core.pipeline import code_hash

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
    found = Comparison(classes=2, pictures=n, gained=gained, lost=lost, both=0)
    assert found.lower_bound(0.95) == pytest.approx(
        naive_lower_bound(gained, lost, n, 0.95), abs=0.002
    )


def test_the_lower_bound_is_seldom_above_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    shares, n = [0.08, 0.12, 0.8], 300
    bounds = [
        Comparison(n, int(gained), int(lost), 0, 2).lower_bound(0.95)
        for gained, lost, _ in rng.multinomial(n, shares, 1000)
    ]
    assert np.mean(np.array(bounds) > -0.04) == pytest.approx(0.05, abs=0.02)


def test_the_same_answers_are_no_worse_whatever_the_margin() -> None:
    scores = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    answers = Answers(("a", "b", "c"), scores)
    found = compare(answers, answers, random.Random(0).choices("abc", k=40))
    assert found is not None
    assert (found.gained, found.lost) == (0, 0)
    assert (found.lower_bound(0.999), found.mcnemar()) == (0.0, 1.0)


def test_mcnemars_test_is_the_exact_binomial_one() -> None:
    found = Comparison(50, gained=1, lost=6, both=0, classes=2)
    assert found.mcnemar() == pytest.approx(2 * (1 + 7) / 2**7)


def test_both_choose_among_the_names_that_they_share() -> None:
    """A new class must not cost the old ones, nor a removed one help them."""
    first = Answers(("b", "a", "new"), np.array([[0.3, 0.1, 0.6], [0.1, 0.2, 0.7]], np.float32))
    second = Answers(("gone", "a", "b"), np.array([[0.9, 0.0, 0.1], [0.8, 0.0, 0.2]], np.float32))
    found = compare(first, second, ["b", "a"])
    assert found == Comparison(classes=2, pictures=2, gained=1, lost=0, both=1)


def test_pictures_of_other_classes_and_those_not_answered_do_not_count() -> None:
    first = Answers(("a", "b"), np.array([[1, 0], [np.nan, np.nan], [1, 0]], np.float32))
    second = Answers(("a", "c"), np.array([[1, 0], [1, 0], [1, 0]], np.float32))
    assert compare(first, second, ["a", "a", "b"]) == Comparison(1, 0, 0, 1, 1)
    assert compare(first, second, ["c", "b", "b"]) is None


# Descent


def faults(project: Path, tags: dict[str, str], number: int = 1, store: str = "") -> list[str]:
    version = Version(NAME, number, tags, (), 0.0)
    return origin.faults(store, version, project=project, profile="quickstart")


def test_a_version_that_dvc_lock_and_its_commit_agree_with_has_no_fault(own_project: Path) -> None:
    tags = registered.tags(own_project)
    assert faults(own_project, tags) == []
    (own_project / "dvc.lock").write_text((own_project / "dvc.lock").read_text() + "\n")
    assert faults(own_project, registered.tags(own_project)) == []  # the lock itself may change
    registered.commit(own_project)  # and so may later commits
    assert faults(own_project, tags) == []


def test_changes_that_are_not_committed_are_a_fault(own_project: Path) -> None:
    with (own_project / "params.yaml").open("a") as file:
        file.write("# a remark\n")
    (found,) = faults(own_project, registered.tags(own_project))
    assert "had changes that were not committed; commit them" in found


def test_code_that_ran_uncommitted_is_a_fault_even_if_it_was_put_away(own_project: Path) -> None:
    code = own_project / "train.py"
    committed = code.read_text()
    code.write_text("print('trained otherwise')\n")
    registered.write_lock(own_project)
    code.write_text(committed)
    (found,) = faults(own_project, registered.tags(own_project))
    assert "1 files, as train.py, were others when the stages ran" in found


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

    found = faults(own_project, registered.tags(own_project))

    if same:
        assert found == []
    else:
        assert "1 files, as data/code/core.txt, were others when the stages ran" in found[0]


def test_parameters_other_than_the_commits_are_a_fault(own_project: Path) -> None:
    registered.write_lock(own_project, {"student.lr": 0.1})
    (found,) = faults(own_project, registered.tags(own_project))
    assert "student.lr of params.yaml had other values" in found


def test_another_student_than_that_of_dvc_lock_is_a_fault(own_project: Path) -> None:
    tags = registered.tags(own_project)
    (own_project / registered.OUTPUTS[3]).write_text("trained again")
    registered.write_lock(own_project)
    (found,) = faults(own_project, tags)
    assert "1 of the outputs" in found
    assert registered.OUTPUTS[3] in found


def test_a_student_of_another_teacher_than_that_of_dvc_lock_is_a_fault(own_project: Path) -> None:
    lock = own_project / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    (dep,) = [
        dep
        for dep in content["stages"]["student@tiny"]["deps"]
        if dep["path"] == registered.OUTPUTS[1]
    ]
    dep["md5"] = "another"
    lock.write_text(yaml.safe_dump(content))
    found = faults(own_project, registered.tags(own_project))
    assert found == [f"student was made with another {registered.OUTPUTS[1]} than dvc.lock has"]


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ({"git_commit": "1" * 40}, "its commit 111111111111 is not in this repository"),
        ({"git_commit": "none"}, "its commit none is not in this repository"),
        ({"git_dirty": ""}, "had changes that were not committed"),
        ({"profile": "paper"}, "it is of the profile 'paper'"),
        ({f"out:{registered.OUTPUTS[0]}": ""}, "1 of the outputs"),
    ],
)
def test_tags_that_do_not_fit_are_a_fault(project: Path, tags: dict[str, str], fault: str) -> None:
    (found,) = faults(project, {**registered.tags(project), **tags})
    assert fault in found


def test_test_pictures_other_than_those_of_dvc_lock_are_a_fault(own_project: Path) -> None:
    tags = registered.tags(own_project)
    (own_project / registered.OUTPUTS[0] / "more.json").write_text("{}")
    assert faults(own_project, tags) == [
        "data/prepare/tiny is not what dvc.lock has; run `dvc checkout`"
    ]


def test_a_data_set_that_dvc_lock_does_not_have_is_a_fault(own_project: Path) -> None:
    (own_project / "dvc.lock").unlink()
    (found,) = faults(own_project, registered.tags(own_project))
    assert "has no prepare@tiny, teacher@tiny, class_vectors@tiny, student@tiny" in found


def test_a_broken_dvc_lock_is_one_line(own_project: Path) -> None:
    (own_project / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {a: [}\n")
    with pytest.raises(PdError, match="dvc.lock is not YAML"):
        faults(own_project, registered.tags(own_project))


def test_changed_classes_descend_from_their_parent_and_its_teacher(
    store: str, project: Path, good: Path
) -> None:
    tags = registered.tags(project)
    publish(store, good, tags)
    child = {
        "kind": "classes-add",
        "parent": "1",
        f"out:{registered.OUTPUTS[1]}": tags[f"out:{registered.OUTPUTS[1]}"],
    }
    publish(store, good, child)
    assert faults(project, child, 2, store) == []
    assert faults(project, {**child, "parent": "2"}, 3, store) == []  # a child's child
    for changes, fault in (
        ({"parent": "7"}, "its parent, version '7', is not in the registry"),
        ({"parent": ""}, "its parent, version '', is not in the registry"),
        ({"parent": "2"}, "its parent, version 2, is no older than itself"),
        ({f"out:{registered.OUTPUTS[1]}": "0" * 32}, "its teacher is 0000"),
    ):
        (found,) = faults(project, {**child, **changes}, 2, store)
        assert fault in found
    registry.set_tags(store, registry.find(store, f"{NAME}/1"), {"git_dirty": "true"})
    (found,) = faults(project, child, 2, store)
    assert found.startswith("its parent, version 1: code, params.yaml or dvc.yaml had changes")
