"""Prefect artifacts of the flows: tables of stages, links to MLflow, Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)

from pd_core.core.artifacts import read_json
from pd_core.core.errors import PdError
from pd_core.core.scores import LEGEND, WORSE, mark
from pd_core.pipeline import provenance
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

_CLASSIFIER = "student"  # whose metrics of `evaluate` are shown

Row = dict[str, Any]


def row_of(stage: str, state: str, seconds: float, metrics: Mapping[str, float], slot: str) -> Row:
    """Return a table's row about a stage.

    Args:
        stage: name.
        state: `computed`, `from the cache`, `up to date` or `failed`.
        seconds: duration.
        metrics: see `metrics_of`.
        slot: GPU slot; empty without one.
    """
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return {
        "stage": stage, "state": str(state), "seconds": round(seconds, 1), "slot": slot,
        "metrics": shown,
    }  # fmt: skip


def legend(rows: Iterable[Row]) -> str:
    """Return the sentence about students worse than zero-shot, if a row is of one."""
    return f" {LEGEND}." if any(WORSE in row["metrics"] for row in rows) else ""


def key_of(*words: str) -> str:
    """Make an artifact's key: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def metrics_of(profile_dir: Path, stage: str) -> dict[str, float]:
    """Read a stage's accuracies, or the last epoch of its training; empty if it has neither."""
    kind, _, dataset = stage.partition("@")
    folder = profile_dir / DATA / kind / dataset
    try:
        if (file := folder / "metrics.json").is_file():
            evaluation = read_json(file)
            name = _CLASSIFIER + mark(_CLASSIFIER, evaluation)
            accuracies = evaluation[_CLASSIFIER]
            return {f"{name} {key}": float(value) for key, value in accuracies.items()}
        if (file := folder / "history.json").is_file():
            return {key: float(value) for key, value in read_json(file)[-1].items()}
    except (PdError, json.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        pass  # the next stage reports corrupt outputs
    return {}


def stages_of(runs: Iterable[UUID | None]) -> list[Row]:
    """Return the rows of the tables that some flow runs have published, run by run."""
    rows: list[Row] = []
    with get_client(sync_client=True) as client:
        for run in filter(None, runs):
            tables = client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    flow_run_id=ArtifactFilterFlowRunId(any_=[run]),
                    type=ArtifactFilterType(any_=["table"]),
                )
            )
            for table in tables[:1]:
                rows += json.loads(str(table.data))
    return rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def publish_mlflow(profile_dir: Path, dataset: str = "") -> None:
    """Publish where MLflow shows the runs of a data set, or of the whole profile."""
    try:
        profile = load_params(profile_dir / PARAMS).profile.name
        page = _mlflow_page(profile_dir, profile, dataset)
    except PdError as error:
        get_run_logger().warning("no link to MLflow: %s", error)
        return
    key, text = key_of("mlflow", dataset or profile), f"MLflow runs of {dataset or profile}"
    if page.startswith("http"):
        create_link_artifact(key=key, link=page, link_text=text)
    else:
        create_markdown_artifact(key=key, markdown=f"{text}: `{page}`")


def _mlflow_page(profile_dir: Path, profile: str, dataset: str) -> str:
    """Return the address of MLflow's page, or the command that serves it."""
    settings = load_settings()
    uri = settings.mlflow_tracking_uri
    if not uri or not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {masked(uri or 'sqlite:///mlflow.db')}"
    from pd_core.mlops import tracking

    return tracking.page_of(
        tracking.open_store(profile_dir, uri),
        f"{settings.mlflow_experiment}-{profile}",
        provenance.commit_tags(profile_dir)["git_commit"],
        dataset,
    )
