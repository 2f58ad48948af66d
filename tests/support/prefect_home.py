"""What flows that ran without a server left in the folder of Prefect."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path


def artifacts(home: Path) -> list[tuple[str, str, str]]:
    """Return key, text and description of each, in order."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        rows = database.execute("select key, data, description from artifact order by created")
        return [(key, json.loads(data), description) for key, data, description in rows]


def states(home: Path) -> list[str]:
    """Return the type of each run's state, in order."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        rows = database.execute("select state_type from flow_run order by created")
        return [state for (state,) in rows]
