"""The README's text and what it tells the user to type."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[str]:
    """Return the indented lines that start with a program, without their comments."""
    lines = re.findall(rf"^    ({program} .+)$", README, re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines]
