"""Distributions that an installation of this project consists of; used by `make licences`."""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that requirements lead to, by name.

    Raises:
        PackageNotFoundError: a distribution is not installed.
    """
    return {name: made.version for name, made in sorted(distributions(requirements).items())}


def distributions(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions that requirements lead to, by name.

    Raises:
        PackageNotFoundError: a distribution is not installed.
    """
    installed: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        made = installed[canonical(wanted.name)] = distribution(wanted.name)
        further = (Requirement(text) for text in made.requires or ())
        waiting += [need for need in further if _applies(need, wanted.extras)]
    return installed


def canonical(name: str) -> str:
    """Return a distribution's name in the form of indexes: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> list[str]:
    """Return the project's own requirements, with those of some extras."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(name for extra in extras for name in optional[extra])]


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


if __name__ == "__main__":
    try:
        sys.stdout.write(" ".join(closure(requirements())) + "\n")
    except PackageNotFoundError as error:
        sys.exit(f"error: {error}; run `make install`")
