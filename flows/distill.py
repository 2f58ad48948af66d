"""The flow `distill_dataset`: all stages of one data set, in order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed

from flows import artifacts, pipeline, slots
from flows.commands import DataSet, profile_of
from pd_core.core.errors import PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.settings import load_settings


@flow(name="distill-dataset")
def distill_dataset(
    dataset: DataSet, profile_dir: Path | None = None, commit: str | None = None
) -> State[Any]:
    """Bring all stages of a data set up to date, on the GPU of the agent that runs this.

    Args:
        dataset: its name.
        profile_dir: folder of the profile's `dvc.yaml`, as seen from the repository; that of the
            data set by default.
        commit: the commit to be at, the last that changed more than results; any by default.

    Returns:
        Completed; or failed at the first stage that failed, and those after it did not run.
    """
    profile_dir = profile_of(dataset) if profile_dir is None else profile_dir
    try:
        _check_commit(commit)
        graph = pipeline.read_graph(profile_dir)
        (name,) = pipeline.choose(graph, [dataset])
        shared = load_settings().dvc_remote is not None
        with _at_work(profile_dir, shared=shared):
            return _run_stages(graph, name, profile_dir, shared=shared)
    except PdError as error:
        return Failed(message=str(error))


def _run_stages(graph: pipeline.Graph, name: str, profile_dir: Path, *, shared: bool) -> State[Any]:
    rows: list[artifacts.Row] = []
    groups = {stage: [stage] for stage in pipeline.plan(graph, name)}
    failed = pipeline.first_failed(groups, profile_dir, rows, shared=shared, send=shared)
    create_table_artifact(
        table=rows,
        key=artifacts.key_of("stages", name),
        description=f"The stages of {name}, in order.{artifacts.legend(rows)}",
    )
    artifacts.publish_mlflow(profile_dir, name)
    if failed is not None:
        return Failed(message=failed.message)
    return Completed(message=f"{len(rows)} stages of {name} are up to date")


@contextmanager
def _at_work(profile_dir: Path, *, shared: bool) -> Iterator[None]:
    """Hold the agent's slot; in a clone of its own `dvc.lock` is reset before and after."""
    slot = slots.own()
    with slots.recorded() as record:
        if slot is None:
            yield
            return
        with slots.held(slot) as leases:
            record(leases)
            if not shared:
                yield
                return
            _reset_lock(profile_dir)
            try:
                yield
            finally:
                _reset_lock(profile_dir)


def _reset_lock(profile_dir: Path) -> None:
    """Restore the commit's `dvc.lock`: only the coordinator writes a new one."""
    subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", "dvc.lock"], cwd=profile_dir)


def _check_commit(commit: str | None) -> None:
    """Refuse a clone that is at another commit."""
    if commit is None:
        return
    here = provenance.code_commit(Path())
    if here != commit:
        raise PdError(
            f"commit {commit[:12]} is asked for, and the agent's clone is at {str(here)[:12]}; "
            f"`git fetch && git checkout {commit[:12]}` there, and start the agent again"
        )
