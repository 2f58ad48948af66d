"""The files that containers are made by, read as their tools read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OWN = "promptkd"  # the image of this project
LOGIN = {"PD_S3_ACCESS_KEY_ID": "some-id", "PD_S3_SECRET_ACCESS_KEY": "some-secret"}

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True)
class Instruction:
    """One of a Dockerfile.

    Attributes:
        word: which, in capitals.
        rest: what it is given, on one line.
        stage: number of the stage that it is part of; -1 before the first.
    """

    word: str
    rest: str
    stage: int


def instructions(text: str) -> list[Instruction]:
    """Take a Dockerfile apart, without its comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Instruction] = []
    stage = -1
    for line in joined.splitlines():
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(word, rest.strip(), stage))
    return found


def pairs(rest: str) -> dict[str, str]:
    """Read what LABEL and ENV are given: `key=value key="value"`."""
    return {
        key: quoted or bare for key, quoted, bare in re.findall(r'(\S+?)=(?:"(.*?)"|(\S+))', rest)
    }


def compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read `compose.yaml`, with the variables of an environment put in.

    Raises:
        KeyError: One is missing that has to be there.
    """
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return {key: _filled(value, environment) for key, value in read.items()}


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    match value:
        case str():
            return _VARIABLE.sub(lambda match: _value(match, environment), value)
        case list():
            return [_filled(each, environment) for each in value]
        case dict():
            return {key: _filled(each, environment) for key, each in value.items()}
    return value


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    name, kind, default = match.groups()
    given = environment.get(name, "")
    if not given and kind != "-":
        raise KeyError(name)
    return given or str(default)
