"""Records of a search's trials in MLflow, and as experiments of DVC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path

from pd_core.core.hooks import OnNote
from pd_core.mlops.tracking import one_line
from pd_core.mlops.tracking.search_runs import SearchRun, TrialRun
from pd_core.pipeline import experiment, provenance
from pd_core.pipeline.stages.params import PARAMS
from pd_core.search.proposal import proposed
from pd_core.search.study import Trial
from pd_core.search.tuning import SEARCH, Search


def recorder(
    search: Search, store: str, experiment: str, on_note: OnNote
) -> Callable[[Sequence[Trial]], None]:
    """Return a function that records those trials in MLflow that are not there yet.

    A store that fails is a note, once, and costs no trial: the next call records what is missing.

    Args:
        search: the task and its study.
        store: of `open_store`.
        experiment: name of MLflow's experiment.
        on_note: called with the note.
    """
    task = search.task
    run = SearchRun(
        store, experiment, search.study.name, task.job.params.name, task.stage,
        task.objective.name, provenance.commit_of(Path(), "HEAD") or provenance.NO_COMMIT,
    )  # fmt: skip
    failed = False

    def record(trials: Sequence[Trial]) -> None:
        nonlocal failed
        try:
            run.record([_trial_run(trial) for trial in trials])
        except Exception as error:  # noqa: BLE001 each store and driver has its own errors
            if not failed:
                on_note(f"warning: trials are not recorded in MLflow: {one_line(error)}")
            failed = True

    return record


def record_experiments(search: Search) -> None:
    """Record the trials as experiments of DVC: rows of `dvc exp show`, for `dvc exp apply`.

    Their metric has a `dvc.yaml` of its own in the folder of the searches, which git ignores.
    """
    task, present = search.task, experiment.recorded(Path())
    digest = search.study.name.rpartition("-")[2][:4]
    prefix = f"tune-{task.job.params.name}-{task.stage}-{digest}-"
    trials = {f"{prefix}{trial.number}": trial for trial in search.study.trials()}
    missing = [_row(name, search, trial) for name, trial in trials.items() if name not in present]
    if missing:
        experiment.record(Path(), missing)


def _row(name: str, search: Search, trial: Trial) -> experiment.Row:
    dataset, stage = search.task.job.params.name, search.task.stage
    metrics = {"objective": trial.value}
    if trial.value is None:
        metrics = {"objective_when_pruned": trial.rungs.get(max(trial.rungs, default=0))}
    files = {
        str(PARAMS): proposed(PARAMS, dataset, stage, trial.values, f"trial {trial.number}"),
        f"{SEARCH}/dvc.yaml": "metrics:\n- metrics.json\n",
        f"{SEARCH}/metrics.json": dumps(metrics),
    }
    return experiment.Row(name, files, trial.ended // 1000)


def _trial_run(trial: Trial) -> TrialRun:
    values = {key: value for key, value in vars(trial).items() if key != "values"}
    return TrialRun(params=trial.values, **values)
