"""One data set's student: `distill_dataset` runs the stages of a data set, in order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed

from flows import pipeline, slots, tables
from flows.datasets import DataSet
from pd_core.core.errors import PdError
from pd_core.pipeline import provenance
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import PARAMS, load_params


@flow(name="distill-dataset")
def distill_dataset(
    dataset: DataSet, profile_dir: Path = Path(), commit: str | None = None
) -> State[Any]:
    """Bring all stages of a data set up to date, on the GPU of the agent that runs this.

    Args:
        dataset: a data set of the profile.
        profile_dir: folder of the profile's `dvc.yaml`, as seen from the repository.
        commit: the commit whose results are wanted, the last that changed more than results; by
            default whatever is there.

    Returns:
        Completed; or failed at the first stage that failed, those after it did not run.
    """
    try:
        _check_commit(commit)
        graph = pipeline.read_graph(profile_dir)
        (name,) = pipeline.choose(graph, [dataset])
        shared = load_settings().dvc_remote is not None
        with _at_work(profile_dir, shared=shared):
            return _bring_up(graph, name, profile_dir, shared=shared)
    except PdError as error:
        return Failed(message=str(error))


def publish_page(profile_dir: Path, dataset: str = "") -> None:
    """Keep where MLflow shows the runs of a data set, or of the benchmark; if it answers."""
    try:
        profile = load_params(profile_dir / PARAMS).profile
        page = _page(profile_dir, profile.name, dataset)
    except PdError as error:
        get_run_logger().warning("no link to MLflow: %s", error)
        return
    what = dataset or profile.name
    tables.publish_link(tables.key_of("mlflow", what), page, f"MLflow runs of {what}")


def _page(profile_dir: Path, profile: str, dataset: str) -> str:
    """Return where MLflow shows runs: a page, or the command that starts one."""
    settings = load_settings()
    uri = settings.mlflow_tracking_uri
    if not uri or not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {masked(uri or 'sqlite:///mlflow.db')}"
    from pd_core.mlops import tracking
    from pd_core.mlops.tracking.runs import page_of

    return page_of(
        tracking.open_store(profile_dir, uri),
        f"{settings.mlflow_experiment}-{profile}",
        provenance.commit_tags(profile_dir)["git_commit"],
        dataset,
    )


def _bring_up(graph: pipeline.Graph, name: str, profile_dir: Path, *, shared: bool) -> State[Any]:
    rows: list[tables.Row] = []
    groups = {stage: [stage] for stage in pipeline.plan(graph, name)}
    failed = pipeline.first_failed(groups, profile_dir, rows, shared=shared, send=shared)
    create_table_artifact(
        table=rows,
        key=tables.key_of("stages", name),
        description=f"The stages of {name}, in order.",
    )
    publish_page(profile_dir, name)
    if failed is not None:
        return Failed(message=failed.message)
    return Completed(message=f"{len(rows)} stages of {name} are up to date")


@contextmanager
def _at_work(profile_dir: Path, *, shared: bool) -> Iterator[None]:
    """Hold the agent's slot; in a clone of its own the lock file of DVC is then thrown away."""
    slot = slots.own()
    with slots.noted() as note:
        if slot is None:
            yield
            return
        with slots.held(slot) as leases:
            note(leases)
            if not shared:
                yield
                return
            _discard_lock(profile_dir)
            try:
                yield
            finally:
                _discard_lock(profile_dir)


def _discard_lock(profile_dir: Path) -> None:
    """Let `dvc.lock` be the commit's: only the coordinator writes a new one."""
    subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", "dvc.lock"], cwd=profile_dir)


def _check_commit(commit: str | None) -> None:
    """Refuse a clone that is at another commit than the one that is asked for."""
    if commit is None:
        return
    here = provenance.code_commit(Path())
    if here != commit:
        raise PdError(
            f"commit {commit[:12]} is asked for, and the agent's clone is at {str(here)[:12]}; "
            f"`git fetch && git checkout {commit[:12]}` there, and start the agent again"
        )
