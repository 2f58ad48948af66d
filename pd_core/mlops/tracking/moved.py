"""Artifact paths of a local store: absolute in MLflow's database, corrected after a move."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from pd_core.core.errors import PdError

ARTIFACTS = "mlruns"
"""Folder of the artifacts, beside the database."""

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_SECONDS = 60.0


def former_folders(database: Path) -> list[str]:
    """Return the other folders of artifacts that a database names as its own.

    An experiment of this package has its files in `mlruns/<name>`; one with files elsewhere, as
    those that MLflow makes from a notebook, is not meant.

    Raises:
        sqlite3.Error: it is no database of MLflow.
    """
    own = str(database.parent / ARTIFACTS)
    rows = _rows(database, "SELECT name, artifact_location FROM experiments")
    ends = [(location or "", f"/{ARTIFACTS}/{name}") for name, location in rows]
    folders = {
        location.removesuffix(end) + f"/{ARTIFACTS}"
        for location, end in ends
        if location.startswith("/") and location.endswith(end)
    }
    return sorted(folders - {own})


def missing_versions(database: Path) -> list[str]:
    """Return the registered versions, as `<name>/<number>`, whose local folder is not there.

    Raises:
        sqlite3.Error: it is no database of MLflow.
    """
    rows = _rows(
        database,
        "SELECT name, version, COALESCE(storage_location, source) FROM model_versions "
        "WHERE current_stage != 'Deleted_Internal' ORDER BY name, version",
    )
    return [
        f"{name}/{version}"
        for name, version, place in rows
        if str(place).startswith("/") and not Path(place).is_dir()
    ]


def _rows(database: Path, query: str) -> list[Any]:
    """Return the rows of a query; SQLite first rolls back what a killed process left, if it may."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
        return connection.execute(query).fetchall()


def adopt(database: Path) -> None:
    """Let all paths in a database lead into its own folder, if its artifacts came along.

    Where they did not, and the former folder still has them, nothing is changed.

    Raises:
        PdError: the database cannot be written.
    """
    own = database.parent / ARTIFACTS
    try:
        for former in former_folders(database):
            if own.is_dir() or not Path(former).is_dir():
                _replace(database, f"{former}/", f"{own}/")
    except sqlite3.OperationalError as error:
        if "no such" in str(error):  # a table or column: MLflow reports its version
            return
        raise PdError(
            f"the artifact paths in '{database}', which was moved or copied, cannot be corrected "
            f"({error}); make it writable"
        ) from None
    except sqlite3.DatabaseError:  # no database: MLflow reports it
        return


def _replace(database: Path, former: str, own: str) -> None:
    """Replace a prefix of all paths, in one transaction."""
    with (
        closing(sqlite3.connect(database, timeout=_SECONDS)) as connection,
        connection,
    ):
        for table, column in _COLUMNS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 constants
                f"WHERE substr({column}, 1, ?) = ?",
                (own, len(former) + 1, len(former), former),
            )
