"""What a name stands for: a git revision, an MLflow run or a model version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pd_core.comparison import revisions, runs
from pd_core.comparison.sides import Side
from pd_core.errors import BadParams, UnknownName
from pd_core.registry import store as registry
from pd_core.repository import commit_of

_RUN, _MODEL = "runs:/", "models:/"


def find_side(given: str, project: Path, open_store: Callable[[], str]) -> Side:
    """Find what a name stands for; what git knows comes first.

    Args:
        given: a git revision; the id of an MLflow run, with `runs:/` in front or not; a model
            version such as `greek/3` or `greek@champion`, with `models:/` in front or not.
        project: folder of the pipeline.
        open_store: opens MLflow's store, which git revisions need not have.

    Raises:
        UnknownName: it is none of them.
        PdError: what it stands for cannot be read.
    """
    if not given.startswith((_RUN, _MODEL)) and (commit := commit_of(project, given)):
        return revisions.side(given, commit, project)
    store = open_store()
    run_id = given.removeprefix(_RUN)
    if not given.startswith(_MODEL) and (run := runs.find_run(store, run_id)):
        return runs.side_of_run(given, store, run, project)
    try:
        version = registry.find(store, given)
    except (BadParams, UnknownName) as error:
        raise UnknownName(
            f"'{given}' is no git revision, no MLflow run and no model version ({error})"
        ) from None
    return runs.side_of_version(given, store, version, project)
