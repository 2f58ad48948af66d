"""Records of a search's trials in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pd_core.core.hooks import OnNote
from pd_core.mlops.tracking import one_line
from pd_core.mlops.tracking.search_runs import SearchRun, TrialRun
from pd_core.pipeline import provenance
from pd_core.search.study import Trial
from pd_core.search.tuning import Search


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


def _trial_run(trial: Trial) -> TrialRun:
    values = {key: value for key, value in vars(trial).items() if key != "values"}
    return TrialRun(params=trial.values, **values)
