"""Flows that run without a server, and their records in Prefect's folder."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_flow(
    name: str, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a flow's command in a folder, by default with Prefect's home in `prefect`."""
    clean = {key: value for key, value in os.environ.items() if "PREFECT_API_URL" not in key}
    paths = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", f"flows.{name}", *arguments],
        cwd=folder,  # without settings of the user's
        env={**clean, **paths, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def artifacts(home: Path) -> list[tuple[str, str, str]]:
    """Return key, text and description of each artifact, in order."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        rows = database.execute("select key, data, description from artifact order by created")
        return [(key, json.loads(data), description) for key, data, description in rows]


def states(home: Path) -> list[str]:
    """Return the type of each flow run's state, in order."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        rows = database.execute("select state_type from flow_run order by created")
        return [state for (state,) in rows]
