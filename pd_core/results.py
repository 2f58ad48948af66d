"""The results of all data sets: reading them, and putting them into one summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from pd_core.artifacts import read_json
from pd_core.errors import BadArtifact, missing

WHO = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
BASELINE = "tuned_student"  # a further one, where it was asked for
KEYS = ("base", "novel", "hm")

Scores = Mapping[str, float]  # base, novel, hm, ... -> percent
Evaluation = Mapping[str, Any]  # who -> scores; and "selection", if it was made on test images
Summary = Mapping[str, Any]  # what `summarise` returns

TITLES = {
    "zero_shot_student": "zero-shot student",
    "zero_shot_teacher": "zero-shot teacher",
    "teacher": "tuned teacher",
    "student": "distilled student",
    BASELINE: "tuned student",
}
_CHOSEN_ON_TEST = "Student's epoch chosen on test images, as in the published code"


def read_evaluations(
    folder: Path, datasets: Sequence[str] = (), baselines: Sequence[str] = ()
) -> dict[str, Evaluation]:
    """Read the `evaluate` stage's metrics.

    Args:
        folder: holds `<data set>/metrics.json` and `tuned_student/<data set>.json`.
        datasets: the data sets to read; all that are there by default.
        baselines: those of them that have the baseline `tuned_student`.

    Returns:
        The scores by data set and by who, in percent.

    Raises:
        MissingFile: there is none, or one of `datasets` is not there.
        BadArtifact: a file lacks a number.
    """
    names = list(datasets) or sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    if not names:
        raise missing("evaluation", folder, "run `dvc repro`")
    found = {name: _read_evaluation(folder / name / "metrics.json", name) for name in sorted(names)}
    for name in set(baselines) & set(found):
        file = folder / BASELINE / f"{name}.json"
        found[name] = {**found[name], **_read_scores(file, name, BASELINE, [BASELINE])}
    return found


def summarise(profile: str, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Collect the scores of all data sets and their averages.

    The average's `hm` is the harmonic mean of the averaged base and novel accuracy, as in the
    paper's Table 1 (86.96 and 80.73 give 83.73), not the average of the harmonic means.

    Args:
        profile: `quickstart` or `paper`.
        evaluations: the scores by data set and by who, in percent.

    Returns:
        `profile`, `datasets.<name>.<who>.{base,novel,hm}` and `average.<who>.{base,novel,hm}`,
        in percent with two decimals. The baseline has an average if all data sets have it.
        `chosen_on_test`, if there are any, lists the data sets whose student was chosen so.
    """
    rows = dict(sorted(evaluations.items()))
    datasets = {
        name: {who: _rounded({key: scores[who][key] for key in KEYS}) for who in _present(scores)}
        for name, scores in rows.items()
    }
    everywhere = [who for who in (*WHO, BASELINE) if all(who in row for row in rows.values())]
    summary: dict[str, Any] = {
        "profile": profile,
        "datasets": datasets,
        "average": {who: _average([scores[who] for scores in rows.values()]) for who in everywhere},
    }
    if chosen := [name for name, scores in rows.items() if "selection" in scores]:
        summary["chosen_on_test"] = chosen
    return summary


def rows_of(summary: Summary, titles: Mapping[str, str] | None) -> list[tuple[str, Evaluation]]:
    """Return the rows of a table: each data set by its readable name, then the average."""
    named = [((titles or {}).get(name, name), row) for name, row in summary["datasets"].items()]
    return [*named, ("average", summary["average"])]


def columns(summary: Summary) -> list[str]:
    """Name the columns: the baseline only if some data set has it."""
    rows = summary["datasets"].values()
    return [who for who in (*WHO, BASELINE) if any(who in row for row in rows)]


def cautions(summary: Summary, titles: Mapping[str, str] | None) -> list[str]:
    """Say which students were chosen on test images: one line, or none."""
    chosen = summary.get("chosen_on_test", [])
    names = ", ".join((titles or {}).get(name, name) for name in chosen)
    return [f"{_CHOSEN_ON_TEST}: {names}."] if chosen else []


def gain(scores: Evaluation) -> float:
    """Return by how much distilling raised the student's harmonic mean."""
    return float(scores["student"]["hm"] - scores["zero_shot_student"]["hm"])


def _read_evaluation(path: Path, name: str) -> Evaluation:
    return _read_scores(path, name, "evaluate", WHO)


def _read_scores(path: Path, name: str, stage: str, everybody: Sequence[str]) -> Evaluation:
    remedy = f"run `dvc repro {stage}@{name}`"
    value = read_json(path, what=f"evaluation of '{name}'", remedy=remedy)
    for who in everybody:
        for key in KEYS:
            try:
                number = value[who][key]
            except (KeyError, TypeError):
                raise BadArtifact(f"'{path}' has no number '{who}.{key}'; {remedy}") from None
            if type(number) not in (int, float) or not math.isfinite(number):
                raise BadArtifact(f"'{who}.{key}' in '{path}' is '{number}'; {remedy}")
    scores: Evaluation = value
    return scores


def _average(scores: Sequence[Scores]) -> dict[str, float]:
    base, novel = (fmean(row[key] for row in scores) for key in ("base", "novel"))
    return _rounded({"base": base, "novel": novel, "hm": harmonic_mean([base, novel])})


def _rounded(scores: Scores) -> dict[str, float]:
    return {key: round(float(value), 2) for key, value in scores.items()}


def _present(scores: Evaluation) -> list[str]:
    return [who for who in (*WHO, BASELINE) if who in scores]
