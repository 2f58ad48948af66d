"""Command lines in this process: one of its own takes seconds to import torch, MLflow or DVC."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny

from pd_core.cli.verbs import main as command_line


def promptkd(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a folder; process-wide settings are undone."""
    command = ["promptkd", *arguments]
    on_end = signal.getsignal(signal.SIGTERM)
    with (
        _as_a_process(folder, environment) as (stdout, stderr),
        patch.object(sys, "argv", command),
        pytest.raises(SystemExit) as end,
    ):
        command_line()
    signal.signal(signal.SIGTERM, on_end)
    status = end.value.code or 0
    assert isinstance(status, int)
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())


def dvc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in a folder; its stages are processes, whose output is dropped."""
    from dvc.cli import main

    with _as_a_process(folder, environment) as (stdout, stderr):
        status = int(main(list(arguments)))
    return subprocess.CompletedProcess(
        ["dvc", *arguments], status, stdout.getvalue(), stderr.getvalue()
    )


@contextlib.contextmanager
def _as_a_process(
    folder: Path, environment: dict[str, str]
) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Work in a folder; yield the streams, and undo process-wide settings."""
    stdout, stderr = io.StringIO(), io.StringIO()
    logged = logging.StreamHandler(stderr)  # Python's default
    logged.setLevel(logging.WARNING)
    logged.addFilter(lambda record: not record.name.startswith("dvc"))
    with (
        pytest.MonkeyPatch.context() as change,
        patch.dict(os.environ, environment),
        tiny.torch_restored(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python does
        change.chdir(folder)
        change.setattr(logging.getLogger(), "handlers", [logged])
        for handler in logging.getLogger("dvc").handlers:  # they know the streams of its import
            wrong = isinstance(handler, logging.StreamHandler) and handler.level >= logging.WARNING
            change.setattr(handler, "stream", stderr if wrong else stdout)
        for name in ("orig_stdout", "orig_stderr", "wrapped_stdout", "wrapped_stderr"):
            change.setattr(f"colorama.initialise.{name}", None)  # DVC would go back to them
        yield stdout, stderr
