"""Metrics of the stages: reading them, and averaging over data sets and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev
from typing import Any

from pd_core.core.artifacts import check_sum, read_json, understood
from pd_core.core.errors import BadArtifact, missing
from pd_core.core.options import BASELINE, TITLES
from pd_core.core.scores import LEGEND, is_worse
from pd_core.data.loading.splits import Protocol

MODELS = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
"""The models that the stage `evaluate` measures."""
MODELS_AND_BASELINE = (*MODELS, BASELINE)
KEYS = ("base", "novel", "hm")
ALL = ("all",)  # where all classes were taught
ACCURACY = "accuracy"  # the same number by the name that every other protocol has for it
ESTIMATES = ("agreement", "cross_validated")  # where no test image has a label

Scores = Mapping[str, float]  # base, novel, hm, ... -> percent
Evaluation = Mapping[str, Any]  # model -> scores; "selection" if it was made on test images
Summary = Mapping[str, Any]  # a report's content
Titles = Mapping[str, str]  # readable names of data sets, where there are any

PROTOCOLS = {
    Protocol.BASE_TO_NOVEL: "Base to novel",
    Protocol.CROSS_DATASET: "Cross-data-set",
    Protocol.DOMAIN_GENERALISATION: "Domain generalisation",
    Protocol.ALL_CLASSES: "All classes",
}
"""Readable names of the protocols, in the order in which reports show them."""


def read_evaluations(
    folder: Path,
    datasets: Sequence[str] = (),
    baselines: Sequence[str] = (),
    cross_validated: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Read the `evaluate` stage's metrics.

    Args:
        folder: holds `<data set>/metrics.json`, `tuned_student/<data set>.json` and
            `cross_validate/<data set>.json`.
        datasets: the data sets to read; all that are there by default.
        baselines: those of them that have the baseline `tuned_student`.
        cross_validated: those of them whose accuracy is estimated by `cross_validate`.

    Returns:
        The scores by data set and model, in percent.

    Raises:
        MissingFile: there is none, or one of `datasets` is not there.
        BadArtifact: a file lacks a number.
    """
    names = sorted(datasets or (path.parent.name for path in folder.glob("*/metrics.json")))
    if not names:
        raise missing("evaluation", folder, "run `dvc repro`")
    evaluations: dict[str, Evaluation] = {
        name: _read_evaluation(folder / name / "metrics.json", name, "evaluate", MODELS)
        for name in names
    }
    for name in set(baselines) & set(names):
        file = folder / BASELINE / f"{name}.json"
        baseline = _read_evaluation(file, name, BASELINE, [BASELINE])
        evaluations[name] = {**evaluations[name], **baseline}
    for name in set(cross_validated) & set(names):
        file = folder / "cross_validate" / f"{name}.json"
        evaluations[name] = with_estimate(evaluations[name], file)
    return evaluations


def with_estimate(scores: Evaluation, file: Path) -> Evaluation:
    """Add the metrics of the stage `cross_validate` to those of `evaluate`.

    Raises:
        MissingFile: the file is not there.
        BadArtifact: the file is corrupt.
    """
    remedy = f"run `dvc repro cross_validate@{file.stem}`"
    estimate = read_json(file, what="cross-validation", remedy=remedy)
    return {**scores, **estimate, "counts": {**scores.get("counts", {}), **estimate["counts"]}}


def _read_evaluation(path: Path, name: str, stage: str, models: Sequence[str]) -> dict[str, Any]:
    remedy = f"run `dvc repro {stage}@{name}`"
    content = read_json(path, what=f"evaluation of '{name}'", remedy=remedy)
    if not isinstance(content, dict):
        raise BadArtifact(f"'{path}' holds no scores; {remedy}")
    if is_estimate(content):
        scores_of(content, ["agreement"], ["student"], path=path, remedy=remedy)
    else:
        scores_of(content, models, keys_of_row(content), path=path, remedy=remedy)
    return content


def scores_of(
    content: Any,
    models: Iterable[str],
    keys: Sequence[str],
    *,
    path: Path,
    remedy: str,
    seed: str = "",
) -> dict[str, dict[str, float]]:
    """Return scores, model -> key -> percent, of a metrics file's content.

    Errors name the path, the seed, if the file holds several, and the remedy.

    Raises:
        BadArtifact: a number is not there, or is no percentage.
    """
    scores: dict[str, dict[str, float]] = {}
    for model in models:
        scores[model] = {}
        for key in keys:
            name = ".".join(filter(None, (seed, model, key)))
            try:
                number = content[model][key]
            except (KeyError, TypeError):
                raise BadArtifact(f"'{path}' has no number '{name}'; {remedy}") from None
            if type(number) not in (int, float) or not 0 <= number <= 100:
                raise BadArtifact(f"'{name}' in '{path}' is '{number}'; {remedy}")
            scores[model][key] = float(number)
    return scores


def read_titles(prepared: Path) -> dict[str, str]:
    """Read the readable name of each prepared data set."""
    titles = {}
    for path in sorted(prepared.glob("*/split.json")):
        remedy = f"run `dvc repro prepare@{path.parent.name}`"
        split = read_json(path, what="prepared data set", remedy=remedy)
        check_sum(path, what="prepared data set", remedy=remedy)
        with understood(path, what="prepared data set", remedy=remedy):
            titles[path.parent.name] = str(split["title"])
    return titles


def is_estimate(evaluation: Evaluation) -> bool:
    """Return True if no labelled test image measures the accuracy."""
    return evaluation.get(ACCURACY) == "unknown"


def keys_of_row(row: Evaluation) -> tuple[str, ...]:
    """Return the keys that all models of a data set have: base, novel and hm, or all."""
    scores = [row[model] for model in MODELS_AND_BASELINE if isinstance(row.get(model), Mapping)]
    return ALL if scores and all(set(of) - {ACCURACY} == set(ALL) for of in scores) else KEYS


def keys_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the keys of a protocol's numbers; the last one is the headline number."""
    return KEYS if protocol is Protocol.BASE_TO_NOVEL else (ACCURACY,)


def average(rows: Sequence[Scores], keys: Sequence[str] = KEYS) -> dict[str, float]:
    """Average each number; `hm` is the harmonic mean of the averaged base and novel accuracy.

    So it is in the paper's Table 1, where 86.96 and 80.73 give 83.73.
    """
    means = {key: fmean(row[key] for row in rows) for key in keys}
    if "hm" in means:
        means["hm"] = harmonic_mean([means["base"], means["novel"]])
    return means


def rounded(scores: Scores) -> dict[str, float]:
    """Round percentages to two decimals."""
    return {key: round(float(value), 2) for key, value in scores.items()}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds and the sample standard deviation, to two decimals.

    The deviation of a single seed is None; a zero has no sign.
    """
    deviation = round(stdev(values), 2) if len(values) > 1 else None
    return round(fmean(values), 2) + 0.0, deviation


def with_deviation(number: str, deviation: float | None, *, digits: int = 2) -> str:
    """Write a number with its standard deviation, if there is one."""
    return number if deviation is None else f"{number} ± {deviation:.{digits}f}"


def p_value(p: float | None) -> str:
    """Write the p-value of a test over data sets; None if there are too few of them."""
    return "too few for p" if p is None else f"p = {p:.2g}"


def worse(summary: Summary, titles: Titles | None) -> list[str]:
    """Name the rows whose distilled student is worse than the zero-shot one, or return none.

    Args:
        summary: scores by data set in `datasets`, and their `average`.
        titles: readable names.
    """
    rows = {**summary["datasets"], "average": summary["average"]}
    names = ", ".join(title(name, titles) for name, row in rows.items() if is_worse(row))
    return [f"{LEGEND}: {names}"] if names else []


def title(name: str, titles: Titles | None) -> str:
    """Return a data set's readable name, or its own where there is none."""
    return (titles or {}).get(name, name)


def protocols_of(summary: Summary) -> dict[Protocol, Summary]:
    """Return a summary's protocols in the order in which they are shown."""
    parts = summary["protocols"]
    return {protocol: parts[protocol] for protocol in Protocol if protocol in parts}


def titles_of(protocol: Protocol) -> dict[str, str]:
    """Return readable names of the models, by protocol: some have another data set's teacher."""
    return TITLES | ({"teacher": "source's teacher"} if protocol.has_source else {})


def heading(summary: Summary, protocol: Protocol, titles: Titles | None) -> str:
    """Return a protocol's heading, with the source if the teacher is another data set's."""
    return ", ".join([PROTOCOLS[protocol], *source_of(summary, protocol, titles)])


def source_of(summary: Summary, protocol: Protocol, titles: Titles | None) -> list[str]:
    """Return which data set the teacher was tuned on, if it is another one: a phrase or none."""
    return [f"teacher from {title(summary['source'], titles)}"] if protocol.has_source else []
