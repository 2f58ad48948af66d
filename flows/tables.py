"""What a flow leaves to look at: the table of its stages, the way to MLflow, the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)

from pd_core.core.artifacts import read_json
from pd_core.core.errors import PdError
from pd_core.pipeline.stages.params import DATA

_SHOWN = "student"  # of the metrics of `evaluate`


Row = dict[str, Any]


def row_of(stage: str, state: str, seconds: float, metrics: Mapping[str, float], slot: str) -> Row:
    """Return what became of a stage as a row of an artifact's table.

    Args:
        stage: its name.
        state: `computed`, `from the cache`, `up to date`, `failed`.
        seconds: how long it took.
        metrics: what it says of itself.
        slot: where it ran; empty if not on a slot.
    """
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return {
        "stage": stage, "state": str(state), "seconds": round(seconds, 1), "slot": slot,
        "metrics": shown,
    }  # fmt: skip


def key_of(*words: str) -> str:
    """Make an artifact's key: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def metrics_of(profile_dir: Path, stage: str) -> dict[str, float]:
    """Return what a stage's outputs say of it: accuracies, or the last epoch of a training."""
    kind, _, dataset = stage.partition("@")
    folder = profile_dir / DATA / kind / dataset
    try:
        if (file := folder / "metrics.json").is_file():
            return _accuracies(read_json(file))
        if (file := folder / "history.json").is_file():
            return {key: float(value) for key, value in read_json(file)[-1].items()}
    except (PdError, json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError):
        pass  # the stage says itself what is wrong with its outputs
    return {}


def stages_of(runs: Iterable[UUID | None]) -> list[Row]:
    """Return the rows of the tables that some flow runs have kept, run by run."""
    rows: list[Row] = []
    with get_client(sync_client=True) as client:
        for run in filter(None, runs):
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    flow_run_id=ArtifactFilterFlowRunId(any_=[run]),
                    type=ArtifactFilterType(any_=["table"]),
                )
            )
            for artifact in found[:1]:
                rows += json.loads(str(artifact.data))
    return rows


def publish_link(key: str, place: str, description: str) -> None:
    """Keep where MLflow shows the runs: a link, or the command that opens it."""
    if place.startswith("http"):
        create_link_artifact(key=key, link=place, link_text=description)
    else:
        create_markdown_artifact(key=key, markdown=f"{description}: `{place}`")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _accuracies(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the student's numbers, with a name that stands for itself."""
    return {f"{_SHOWN} {name}": float(value) for name, value in metrics[_SHOWN].items()}
