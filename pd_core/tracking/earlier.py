"""Earlier runs of a stage: which one a new run replaces, and which were killed."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil

from pd_core.tracking.record import milliseconds
from pd_core.tracking.store import search
from pd_core.tracking.system import BUSY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REPLACES = "replaces"
REPLACED_BY = "replaced_by"

_CLOCKS_DIFFER = 5.0  # seconds, between the start of a process by the kernel's clock and by ours


def replace(mlflow: MlflowClient, experiment: str, run_id: str, stage: Mapping[str, str]) -> None:
    """Let a new run and the earlier ones of the same stage say so of each other.

    Those whose process was killed are noted as killed; those that still run are left alone.

    Args:
        mlflow: the client.
        experiment: its id.
        run_id: of the new run.
        stage: its tags: stage, dataset.
    """
    key = {name: stage[name] for name in ("stage", "dataset")}
    before = [
        run
        for run in search(mlflow, experiment, key)
        if run.info.run_id != run_id and REPLACED_BY not in run.data.tags and ended(mlflow, run)
    ]
    if before:
        latest = max(before, key=lambda run: run.info.start_time)
        mlflow.set_tag(run_id, REPLACES, latest.info.run_id)
    for run in before:
        mlflow.set_tag(run.info.run_id, REPLACED_BY, run_id)


def ended(mlflow: MlflowClient, run: Run) -> bool:
    """Whether a stage's run is over; one whose process is gone is noted as killed."""
    if run.info.status != "RUNNING":
        return True
    if _may_live(run):
        return False
    mlflow.set_terminated(run.info.run_id, "KILLED", _last_sign(mlflow, run))
    return True


def _may_live(run: Run) -> bool:
    """Whether the process of a run may still be there; that of another machine always may."""
    tags = run.data.tags
    if tags.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(tags["pid"]))
        # A younger process was given the number of one that ended.
        is_younger = process.create_time() > run.info.start_time / 1000 + _CLOCKS_DIFFER
        return not is_younger and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _last_sign(mlflow: MlflowClient, run: Run) -> int:
    """Return the milliseconds at which a killed run was last heard of."""
    signs = mlflow.get_metric_history(run.info.run_id, BUSY)
    return max((sign.timestamp for sign in signs), default=milliseconds())
