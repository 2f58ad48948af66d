"""Measure what chosen labels bring: 8 labels a class, and 8 a class more, chosen or at random.

``python -m recipes.labelling`` (hours) runs all embedded data sets with three seeds, and writes
`reports/labelling/summary.md` after each run. Finished runs are in `summary.json` beside it, so the
same command goes on where it was ended, on another machine too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pd_core.cli.common import note
from pd_core.core.artifacts import read_json, write_json, write_text
from pd_core.core.errors import FailedRun
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.catalog.embedded import DOMAINS, HANDWRITTEN_PER_CLASS, IMAGES_PER_CLASS, domain
from pd_core.data.loading.prepared import Labelled, read_prepared
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.significance import over_datasets
from pd_core.labelling.pool import read_pool
from pd_core.labelling.selection import Method, select
from pd_core.labelling.variants import write_variant
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetRow, Params, load_params
from pd_core.reporting.results import mean_and_deviation, p_value, with_deviation
from pd_core.reporting.tables import Column, Table

SHOTS = 8
"""Labels a class to start with, and labels a class that are added."""

SEEDS = (1, 2, 3)
START = "start"
PASSES = ((START, Method.RANDOM, Method.BADGE, Method.ENTROPY), (Method.CORESET,))
"""Arms; a pass is complete for all data sets and seeds before the next one begins."""

STAGES = Path("build") / "labelling"
REPORT = Path("reports") / "labelling"
RESULTS = REPORT / "summary.json"
MODELS = ("teacher", "student")

Accuracies = dict[str, float]  # by model, percent
Results = dict[str, dict[str, dict[int, Accuracies]]]  # arm -> data set -> seed


def runs() -> Iterator[tuple[str, int, str]]:
    """Yield all runs (data set, seed, arm) in order."""
    for arms in PASSES:
        for seed in SEEDS:
            for dataset in DOMAINS:
                for arm in arms:
                    yield dataset, seed, str(arm)


def run(params: Params, dataset: str, seed: int, arm: str) -> Accuracies:
    """Run the stages of one arm; return the accuracies on the test images."""
    job = _job(params, dataset, seed, SHOTS)
    if arm == START or not job.student.is_dir():
        jobs.prepare(job)
        _train(job)
    if arm != START:
        job = _with_labels(job, arm, _chosen(params, job, Method(arm)))
        _train(job)
    metrics = jobs.evaluate(job, who=MODELS)
    return {model: metrics[model]["all"] for model in MODELS}


def _train(job: Job) -> None:
    jobs.teacher(job)
    jobs.class_vectors(job)
    jobs.student(job)


def _job(params: Params, dataset: str, seed: int, shots: int) -> Job:
    changes = DatasetRow(prepare={"shots": shots, "protocol": str(Protocol.ALL_CLASSES)})
    return Job.at(
        STAGES, params.for_dataset(dataset, changes), seed=seed, device="cpu",
        data_root=DATA / "raw", features=STAGES / "features", suffix=f"-{seed}-{shots}",
    )  # fmt: skip


def _chosen(params: Params, base: Job, method: Method) -> Labelled:
    """Choose images with the models of the start, and look up their labels."""
    pool = read_pool(base, NO_HOOKS)
    count = SHOTS * len(pool.classes)
    rows = select(pool.candidates, method, count, np.random.default_rng(base.seed))
    labels = _all_labels(params, base.params.name)
    return tuple((pool.paths[row], labels[pool.paths[row]]) for row in rows)


def _all_labels(params: Params, dataset: str) -> dict[str, int]:
    """Return the labels of all training images."""
    counts = HANDWRITTEN_PER_CLASS if domain(dataset).handwritten else IMAGES_PER_CLASS
    job = _job(params, dataset, SEEDS[0], counts["train"])
    if not job.prepared.is_dir():
        jobs.prepare(job)
    return dict(read_prepared(job.prepared).few_shot)


def _with_labels(base: Job, arm: str, more: Labelled) -> Job:
    """Return the job of an arm; its prepared data set has the labels of the start and these."""
    name = f"{base.prepared.name}-{arm}"
    folders = ("prepared", "teacher", "vectors", "student", "evaluation")
    paths = {folder: getattr(base, folder).with_name(name) for folder in folders}
    few_shot = read_prepared(base.prepared).few_shot
    write_variant(
        base.prepared, paths["prepared"], data_root=base.data_root, few_shot=(*few_shot, *more)
    )
    return replace(base, **paths)


def read_results() -> Results:
    """Read the results of the finished runs, in the order of `runs`."""
    stored = read_json(RESULTS)["results"] if RESULTS.is_file() else {}
    results: Results = {}
    for dataset, seed, arm in runs():
        accuracies = stored.get(arm, {}).get(dataset, {}).get(str(seed))
        if accuracies is not None:
            results.setdefault(arm, {}).setdefault(dataset, {})[seed] = accuracies
    return results


def summary(results: Results) -> dict[str, Any]:
    """Compare each method with random choice, by model, over the runs that both have."""
    return {
        arm: {model: _comparison(results, arm, model) for model in MODELS}
        for arm in results
        if arm != Method.RANDOM and Method.RANDOM in results
    }


def _comparison(results: Results, arm: str, model: str) -> dict[str, Any]:
    seeds = {
        dataset: sorted(by_seed.keys() & results[Method.RANDOM].get(dataset, {}).keys())
        for dataset, by_seed in results[arm].items()
    }
    mine, random = (
        {
            dataset: [results[which][dataset][seed][model] for seed in shared]
            for dataset, shared in seeds.items()
            if shared
        }
        for which in (arm, Method.RANDOM)
    )
    test = over_datasets(mine, random)
    return {
        "datasets": test.datasets, "runs": sum(map(len, mine.values())),
        "difference": round(test.difference, 2), "p": test.p,
    }  # fmt: skip


def markdown(results: Results) -> str:
    """Return the tables: accuracy by data set and arm, and each method's difference to random."""
    arms = list(results)
    rows = [
        [dataset, *(_cell(results[arm].get(dataset, {}), "student") for arm in arms)]
        for dataset in DOMAINS
    ]
    average = [_average(results[arm], "student") for arm in arms]
    accuracies = Table(["data set", *arms], [*rows, ["average", *average]])
    compared = Table(
        ["method", Column("model", words=True), "runs", "difference to random", "p"],
        [
            [arm, model, str(row["runs"]), f"{row['difference']:+.2f}", p_value(row["p"])]
            for arm, models in summary(results).items()
            for model, row in models.items()
        ],
    )
    done, total = sum(len(x) for arm in results.values() for x in arm.values()), len(list(runs()))
    return (
        f"Accuracy of the student on the test images, percent, mean and standard deviation over "
        f"seeds: {SHOTS} labels of each class (`{START}`), and as many more chosen by each method. "
        f"{done} of {total} runs.\n\n{accuracies.markdown()}\n\n"
        f"Differences in accuracy to random choice, points, and p of Wilcoxon's signed-rank test "
        f"over data sets.\n\n{compared.markdown()}\n"
    )


def _cell(by_seed: dict[int, Accuracies], model: str) -> str:
    if not by_seed:
        return "–"
    mean, deviation = mean_and_deviation([each[model] for each in by_seed.values()])
    return with_deviation(f"{mean:.1f}", deviation, digits=1)


def _average(by_dataset: dict[str, dict[int, Accuracies]], model: str) -> str:
    means = [
        float(np.mean([each[model] for each in by_seed.values()]))
        for by_seed in by_dataset.values()
    ]
    return f"{np.mean(means):.1f}"


def main() -> None:
    """Run what is missing, and write the summary after each run."""
    params, results = load_params(PARAMS), read_results()
    compute_with(params.run.threads)
    for number, (dataset, seed, arm) in enumerate(runs(), start=1):
        if seed in results.get(arm, {}).get(dataset, {}):
            continue
        note(f"run {number}: {dataset}, seed {seed}, {arm}")
        try:
            accuracies = run(params, dataset, seed, arm)
        except FailedRun as error:  # such as a student that agrees with its teacher by chance only
            note(f"failed: {error}")
            continue
        results.setdefault(arm, {}).setdefault(dataset, {})[seed] = accuracies
        write_report(results)


def write_report(results: Results) -> None:
    """Write the results, from which the same command goes on, and the tables."""
    write_json(RESULTS, {"results": results, "compared": summary(results)})
    write_text(REPORT / "summary.md", markdown(results))


if __name__ == "__main__":
    main()
