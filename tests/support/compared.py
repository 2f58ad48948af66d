"""Outputs of `evaluate` for made-up classifiers, and projects of git and DVC with them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import numpy as np
import yaml
from git_repository import commit, git
from numpy.typing import NDArray

from pd_core.core.artifacts import write_json
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.evaluate import Predictions, predictions

CLASSES, FIRST_NOVEL, EACH = 5, 3, 20
LABELS = np.repeat(np.arange(CLASSES), EACH)

# In place of the stage's work its outputs are copied, which were made before.
_STAGE = {
    "cmd": "mkdir -p data/evaluate/${item} && cp made/${item}/*.json data/evaluate/${item}/",
    "deps": ["made/${item}", "fingerprints/${item}.json"],
    "outs": ["data/evaluate/${item}/predictions.json"],
    "metrics": ["data/evaluate/${item}/metrics.json"],
}


@dataclass(frozen=True)
class Evaluation:
    """The two files of the stage `evaluate`."""

    metrics: Mapping[str, Any]
    predictions: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        write_json(folder / "metrics.json", self.metrics)
        write_json(folder / "predictions.json", self.predictions)


def evaluation(
    *, skill: float, seed: int, protocol: Protocol = Protocol.BASE_TO_NOVEL
) -> Evaluation:
    """Make the evaluation of a student and a teacher on the same test images.

    Args:
        skill: added to the student's logit of the right class.
        seed: of the student's noise.
        protocol: decides the numbers.
    """
    logits = {"student": _logits(skill, seed), "teacher": _logits(2.0, 0)}
    items = tuple((f"test/{place:03}.png", int(label)) for place, label in enumerate(LABELS))
    best = {who: predictions(each, LABELS, FIRST_NOVEL) for who, each in logits.items()}
    found = Predictions(items, best, FIRST_NOVEL, protocol)
    return Evaluation(found.metrics(), found.rows())


def _logits(skill: float, seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(len(LABELS), CLASSES))
    return (noise + skill * np.eye(CLASSES)[LABELS]).astype(np.float32)


def right(found: Evaluation, who: str, half: str) -> NDArray[np.bool_]:
    """Say which pictures are named right within their half, of one half or (`all`) among all."""
    place = 1 if half == "all" else 0
    hits = np.array([row[who][place] == row["label"] for row in found.predictions])
    if half == "all":
        return hits
    return hits[LABELS < FIRST_NOVEL] if half == "base" else hits[LABELS >= FIRST_NOVEL]


def make_project(folder: Path) -> Path:
    """Make a project of git and DVC, with one revision that has nothing in it."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    with (folder / ".gitignore").open("a") as file:
        file.write("/mlflow.db*\n/mlruns/\n")
    commit(folder)
    return folder


def evaluate(
    folder: Path,
    params: Mapping[str, Any],
    found: Mapping[str, Evaluation],
    pictures: str = "the same",
) -> None:
    """Let DVC run the stages of data sets with these results, and commit all.

    Args:
        folder: the project.
        params: what `params.yaml` says.
        found: by folder of results: a data set, or `<data set>-<seed>`.
        pictures: what their fingerprints say.
    """
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params)))
    shutil.rmtree(folder / "made", ignore_errors=True)
    for name, one in found.items():
        one.write(folder / "made" / name)
        write_json(folder / "fingerprints" / f"{name}.json", {"content": pictures})
    stages = {"evaluate": {"foreach": list(found), "do": _STAGE}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc(folder, "repro", "--quiet")
    commit(folder)


def dvc(folder: Path, *arguments: str) -> None:
    done = command.dvc(folder, *arguments)
    assert done.returncode == 0, done.stderr
