"""The command line in this process: one of its own takes seconds to import torch and MLflow."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny

from pd_core.cli import main


def promptkd(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a folder; what it sets for its own process is undone."""
    command = ["promptkd", *arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    on_end = signal.getsignal(signal.SIGTERM)
    logged = logging.StreamHandler(stderr)  # as Python does where nobody else sees to it
    logged.setLevel(logging.WARNING)
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
        change.setattr(sys, "argv", command)
        change.setattr(logging.getLogger(), "handlers", [logged])
        with pytest.raises(SystemExit) as end:
            main.main()
    signal.signal(signal.SIGTERM, on_end)
    status = end.value.code or 0
    assert isinstance(status, int)
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())
