"""The data sets that flows can be started for: those of both profiles, as a type of a parameter.

So a Prefect server offers their names, and refuses others before a run is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import WithJsonSchema

from pd_core.core.errors import unknown
from pd_core.pipeline.stages.params import PARAMS

ROOT = Path(__file__).parents[1]
PROFILES = (Path(), Path("paper"))
"""Folders of the profiles' `params.yaml`, from the repository's root."""


def read_profiles(root: Path) -> dict[str, Path]:
    """Return all profiles' data sets, as they stand in the repository's files.

    Returns:
        Name -> folder of its profile, from the root on; nothing at all if a file cannot be read:
        whatever needs its parameters says why.
    """
    found: dict[str, Path] = {}
    try:
        for profile in PROFILES:
            content = yaml.safe_load((root / profile / PARAMS).read_text(encoding="utf-8"))
            for name in content["datasets"]:
                found.setdefault(str(name), profile)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return found


def type_of(names: tuple[str, ...]) -> Any:
    """Return the type of a parameter for which a server offers some names, and takes no others.

    Without a server, profiles elsewhere have names of their own, which the flows look at.
    """
    return Annotated[str, WithJsonSchema({"type": "string", "enum": list(names)})] if names else str


PROFILE_OF = read_profiles(ROOT)
"""Name -> folder of its profile, from the repository's root on."""

if TYPE_CHECKING:
    DataSet = str
else:
    DataSet = type_of(tuple(PROFILE_OF))


def check_name(name: str) -> None:
    """Refuse in our words what Prefect would refuse in its own.

    Raises:
        UnknownName: there is no such data set.
    """
    if PROFILE_OF and name not in PROFILE_OF:
        raise unknown("data set", name, PROFILE_OF)


def profile_of(name: str) -> Path:
    """Return the folder of a data set's profile: this one, or the one that is below it."""
    folder = PROFILE_OF.get(name, Path())
    return folder if (folder / PARAMS).is_file() else Path()
