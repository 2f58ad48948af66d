"""Golden files: expected texts of reports, written anew where UPDATE_GOLDEN is set."""

import os
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

FOLDER = Path(__file__).parents[1] / "reporting" / "golden"


def check(name: str, text: str) -> None:
    """Compare a text with a golden file."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} differs; see UPDATE_GOLDEN"


def shown(content: RenderableType, width: int = 80) -> str:
    """Return what a terminal of this width shows, without spaces at the ends of lines."""
    console = Console(width=width, record=True, file=StringIO())
    console.print(content)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())
