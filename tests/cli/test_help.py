"""All help texts are those of `help.txt`; `python -m tests.cli.test_help` rewrites that file."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer

from pd_core.cli import verbs

FILE = Path(__file__).with_name("help.txt")
FLOWS = ("agent", "benchmark", "monitor", "promote", "refresh", "server")
WIDTH = 80


def pages(command: Any, name: str, parent: Any = None) -> Iterator[str]:
    """Yield the help of a command and of those below it."""
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=WIDTH)
    yield command.get_help(context)
    for each, subcommand in getattr(command, "commands", {}).items():
        yield from pages(subcommand, each, context)


def flow_page(name: str) -> str:
    module, text = importlib.import_module(f"flows.{name}"), io.StringIO()
    with (
        patch.object(sys, "argv", [name, "--help"]),
        patch.dict("os.environ", COLUMNS=str(WIDTH), NO_COLOR="1"),
        redirect_stdout(text),
        pytest.raises(SystemExit),
    ):
        module.main(None)
    return text.getvalue().rstrip()


def help_texts() -> str:
    verbs.add_groups()
    texts = [*pages(typer.main.get_command(verbs.app), "promptkd"), *map(flow_page, FLOWS)]
    return f"\n\n{'-' * WIDTH}\n\n".join(texts) + "\n"


def test_all_help_texts_are_those_that_were_read() -> None:
    assert help_texts() == FILE.read_text("utf-8"), "run `python -m tests.cli.test_help`"


if __name__ == "__main__":
    FILE.write_text(help_texts(), "utf-8")
