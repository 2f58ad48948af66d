"""Paper's numbers, hand-tuned numbers and `promptkd tune` on the embedded benchmark.

`python -m recipes.tuning` measures the harmonic mean on test images with seeds 1, 2 and 3. The
search is that of the command: it starts from the paper's numbers, has 15 trials for the teacher and
15 for the student of each data set, and chooses by validation images with seed 11, as the
hand-tuned numbers were chosen. All measurements use cached targets and frozen features. It takes
hours and may be killed and started again, on another machine too: each result is a line in
`runs.jsonl`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import fsum
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer

from pd_core.cli.common import note
from pd_core.core.atomic import write_bytes
from pd_core.core.config import Config
from pd_core.core.errors import PdError
from pd_core.core.options import Computed
from pd_core.evaluation.significance import OverDatasets, over_datasets
from pd_core.pipeline.settings import compute_with
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import PARAMS, DatasetRow, Params, load_params

CHOSEN_ON, SEEDS, TRIALS = 11, (1, 2, 3), 15
METHODS = {
    "paper": "the paper's numbers",
    "hand": "hand-tuned",
    "tune": "`promptkd tune`",
}
COMPARED, COMPARED_TRIALS = "embedded_greek", 30
"""Data set whose trials are also trained completely, for their cost; and the command's trials."""

Row = dict[str, Any]


class Results:
    """Lines of results that are there already, and a file to append others to."""

    def __init__(self, file: Path) -> None:
        """Read the lines; a last one that a kill cut off is left out."""
        self.file = file
        lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
        self.rows: list[Row] = [json.loads(line) for line in lines if line.endswith("\n")]
        write_bytes(file, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def find(self, **keys: object) -> Row | None:
        """Return the row with these values, if there is one."""
        return next((row for row in self.rows if keys.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        """Append a row."""
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def _timed(row: Row) -> Iterator[None]:
    """Add the CPU minutes of the block to a row."""
    start = time.process_time()
    yield
    row["cpu_minutes"] = round((time.process_time() - start) / 60, 2)


def papers(hand: Params) -> Params:
    """Return the embedded benchmark with the paper's numbers.

    The models are the embedded ones, and images are not mirrored: mirrored letters are others.
    """
    paper = load_params(Path("paper") / PARAMS)

    def block(own: Config, published: Config) -> Config:
        kept = {key: getattr(own, key) for key in ("model", "weights", "flip")}
        return published.model_copy(update=kept)

    rows = {name: DatasetRow() for name in hand.datasets}
    blocks = {
        "teacher": block(hand.teacher, paper.teacher),
        "student": block(hand.student, paper.student),
    }
    return hand.model_copy(update={**blocks, "datasets": rows})


def job_of(params: Params, name: str, seed: int, folder: Path, work: Path) -> Job:
    """Return the job of a data set in a folder of its own."""
    return Job.at(
        folder, params.for_dataset(name), seed=seed, device="cpu", data_root=Path("data/raw"),
        features=work / "features",
    )  # fmt: skip


def measure(params: Params, name: str, seed: int, work: Path) -> Row:
    """Run all stages of a data set; return its harmonic means and CPU minutes."""
    folder, row = work / "stages", Row()
    shutil.rmtree(folder, ignore_errors=True)
    job = job_of(cached(params, name), name, seed, folder, work)
    jobs.prepare(job)
    with _timed(row):
        jobs.teacher(job)
        jobs.class_vectors(job)
        jobs.student(job)
    metrics = jobs.evaluate(job)
    return {"student": metrics["student"]["hm"], "teacher": metrics["teacher"]["hm"], **row}


def measure_seeds(params: Params, name: str, method: str, results: Results, work: Path) -> None:
    """Measure what is missing of a method's results with all seeds."""
    for seed in SEEDS:
        keys = {"dataset": name, "method": method, "seed": seed}
        if results.find(**keys) is None:
            results.add({**keys, **measure(params, name, seed, work)})
            note(f"{name} {method} seed {seed}")


def cached(params: Params, name: str) -> Params:
    """Return parameters with which the towers compute no view twice."""
    computed = str(Computed.CACHED)
    changes = {"teacher": {"frozen_features": computed}, "student": {"teacher_targets": computed}}
    return _changed(params, name, changes)


def tuned(params: Params, name: str, results: Results, work: Path) -> Params:
    """Search the teacher's and then the student's parameters; return the best ones."""
    for stage in ("teacher", "student"):
        keys = {"dataset": name, "search": stage}
        done = results.find(**keys)
        if done is None:
            job = job_of(params, name, CHOSEN_ON, work / "search", work)
            done = {**keys, **_searched(params, job, stage, work / "trials")}
            results.add(done)
        params = _changed(params, name, {stage: done["values"]})
    return params


def _changed(params: Params, name: str, changes: Mapping[str, Mapping[str, Any]]) -> Params:
    """Return parameters with other values in some stages of a data set."""
    row = params.datasets[name]
    stages = {stage: {**getattr(row, stage), **values} for stage, values in changes.items()}
    rows = {**params.datasets, name: row.model_copy(update=stages)}
    return params.model_copy(update={"datasets": rows})


def _searched(params: Params, job: Job, stage: str, root: Path) -> Row:
    from pd_core.search import tuning

    jobs.prepare(job)
    if stage == "student":
        jobs.teacher(job)
        jobs.class_vectors(job)
    search = tuning.open_search(params, job, stage, root=root)
    title = f"{job.params.name} {stage}"
    tuning.run_trials(search, TRIALS, on_trial=lambda trials: note(f"{title} {len(trials)}"))
    result = tuning.best_candidates(search)
    return {
        "values": result.best.trial.values,
        "objective": search.task.objective.name, "trial": result.best.trial.number,
        "candidates": {str(each.trial.number): each.scores for each in result.candidates},
        "pruned": sum(trial.value is None for trial in result.trials),
        "trials": [
            {"values": trial.values, "cpu_minutes": trial.cpu_seconds / 60}
            for trial in result.trials
        ],
        "cpu_minutes": round(result.cpu_seconds / 60, 2),
    }  # fmt: skip


def compare_cost(params: Params, name: str, results: Results, work: Path) -> None:
    """Search the student's parameters once more; train each trial completely right after it.

    The complete trainings are without cached targets. Both come in turns, since other work on the
    machine changes the processor time of either.
    """
    from pd_core.search import tuning

    folder = work / "cost"
    job = replace(job_of(params, name, CHOSEN_ON, folder, work), features=folder / "features")
    if not job.vectors.is_dir():
        jobs.prepare(job)
        jobs.teacher(job)
        jobs.class_vectors(job)
    search = tuning.open_search(params, job, "student", root=folder / "trials")
    for number in range(1, COMPARED_TRIALS + 1):
        if results.find(dataset=name, cost_of_trial=number) is not None:
            continue
        tuning.run_trials(search, number)
        trial = search.study.trials()[number - 1]
        changes = {**trial.values, "teacher_targets": str(Computed.ONLINE)}
        own = params.for_dataset(name, DatasetRow(student=changes))
        row: Row = {"dataset": name, "cost_of_trial": number, "trial": trial.cpu_seconds / 60}
        with _timed(row):
            jobs.student(replace(job, params=own, student=folder / "complete"))
        results.add(row)
        note(f"{name} cost of trial {number}")


def summary(results: Results) -> str:
    """Return the table of the data sets that all methods have been measured on."""
    scores = {method: _scores(results.rows, method) for method in METHODS}
    complete = [name for name in scores["tune"] if all(name in scores[each] for each in METHODS)]
    lines = [
        "# Tuning", "",
        "Harmonic mean of the student on test images, percent, mean and standard deviation over"
        f" seeds {', '.join(map(str, SEEDS))}. Written by `python -m recipes.tuning`.", "",
        f"| data set | {' | '.join(METHODS.values())} | search, CPU minutes |",
        f"|---{'|---:' * len(METHODS)}|---:|",
        *(_line(name, scores, results) for name in complete),
    ]  # fmt: skip
    if complete:
        kept = {each: {name: scores[each][name] for name in complete} for each in METHODS}
        cells = [f"{fmean(map(fmean, table.values())):.1f}" for table in kept.values()]
        cost = fsum(_cost(results, name) for name in complete)
        average = f"**average of {len(complete)}**"
        lines += [f"| {average} | {' | '.join(cells)} | {cost:.0f} in all |", ""]
        lines += [
            _comparison(other, over_datasets(kept["tune"], kept[other]))
            for other in ("paper", "hand")
        ]
    if ratio := _ratio(results):
        lines += ["", ratio]
    return "\n".join(lines) + "\n"


def _scores(rows: Sequence[Row], method: str) -> dict[str, list[float]]:
    """Return the student's numbers by data set, of those with all seeds."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.get("method") == method:
            scores.setdefault(row["dataset"], []).append(row["student"])
    return {name: values for name, values in scores.items() if len(values) == len(SEEDS)}


def _cost(results: Results, name: str) -> float:
    rows = [row for row in results.rows if "search" in row and row["dataset"] == name]
    return fsum(row["cpu_minutes"] for row in rows)


def _line(name: str, scores: Mapping[str, Mapping[str, list[float]]], results: Results) -> str:
    cells = (
        f"{fmean(values):.1f} ± {stdev(values):.1f}"
        for values in (scores[method][name] for method in METHODS)
    )
    return f"| {name} | {' | '.join(cells)} | {_cost(results, name):.0f} |"


def _comparison(other: str, test: OverDatasets) -> str:
    p = "no p-value" if test.p is None else f"p = {test.p:.3f}, Wilcoxon"
    return f"- {METHODS['tune']} against {METHODS[other]}: {test.difference:+.1f} ({p})"


def _ratio(results: Results) -> str:
    """Return the cost of a search's trials against that of as many complete trainings."""
    rows = [row for row in results.rows if "cost_of_trial" in row]
    if len(rows) < COMPARED_TRIALS:
        return ""
    trials, complete = (fsum(row[key] for row in rows) for key in ("trial", "cpu_minutes"))
    return (
        f"{COMPARED_TRIALS} trials of the student of {COMPARED} took {trials:.1f} CPU minutes with"
        f" pruning and cached targets, and {complete:.1f} trained completely and online, in turns:"
        f" a share of {trials / complete:.2f}."
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("reports/tuning"),
    work: Annotated[Path, typer.Option(help="Folder of the trainings.")] = Path("build/tuning"),
) -> None:
    """Measure all data sets; the same command resumes."""
    hand = load_params(PARAMS)
    compute_with(hand.run.threads)
    paper, results = papers(hand), Results(out / "runs.jsonl")
    for name in [COMPARED, *(each for each in hand.datasets if each != COMPARED)]:
        measure_seeds(paper, name, "paper", results, work)
        measure_seeds(hand, name, "hand", results, work)
        measure_seeds(tuned(paper, name, results, work), name, "tune", results, work)
        if name == COMPARED:
            compare_cost(hand, name, results, work)
        write_bytes(out / "summary.md", summary(results).encode())


if __name__ == "__main__":
    try:
        typer.run(main)
    except PdError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
