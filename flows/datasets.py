"""The data sets that flows can be started for: those of both profiles, as a type of a parameter.

So a Prefect server offers their names, and refuses others before a run is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pd_core.errors import unknown

ROOT = Path(__file__).parents[1]
PROFILES = (Path(), Path("paper"))
"""Folders of the profiles' `params.yaml`, from the repository's root."""


def read_names(root: Path) -> tuple[str, ...]:
    """Return the names of all profiles' data sets, as they stand in the files, each once.

    Args:
        root: the repository's.

    Returns:
        None at all if a file cannot be read; whatever needs its parameters says why.
    """
    names: dict[str, None] = {}  # a set that keeps its order
    try:
        for profile in PROFILES:
            content = yaml.safe_load((root / profile / "params.yaml").read_text(encoding="utf-8"))
            names |= dict.fromkeys(map(str, content["datasets"]))
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return ()
    return tuple(names)


def type_of(names: tuple[str, ...]) -> Any:
    """Return the type of a parameter that is one of some names; of any name if none is known."""
    return Literal[names] if names else str


NAMES = read_names(ROOT)

if TYPE_CHECKING:
    DataSet = str
else:
    DataSet = type_of(NAMES)


def check_name(name: str) -> None:
    """Refuse in our words what Prefect would refuse in its own.

    Raises:
        UnknownName: there is no such data set.
    """
    if NAMES and name not in NAMES:
        raise unknown("data set", name, NAMES)
