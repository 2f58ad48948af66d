"""Which distributions an installation of this project consists of; `make licences` asks."""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Follow requirements to all distributions that they lead to, as they are installed.

    Returns:
        Versions by name, names in the form of indexes: lower case, with hyphens.

    Raises:
        PackageNotFoundError: One is not installed.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        installed = distribution(wanted.name)
        found[canonical(wanted.name)] = installed.version
        further = (Requirement(text) for text in installed.requires or ())
        waiting += [one for one in further if _applies(one, wanted.extras)]
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    """Return a distribution's name as an index has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> list[str]:
    """Return what the project requires itself, with some of its extras."""
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
