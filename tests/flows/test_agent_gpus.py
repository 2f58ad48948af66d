"""An agent's GPUs are those of its machine."""

from pathlib import Path

import pytest

from flows.agent import check_gpus
from flows.slots import Slot
from pd_core.core.errors import BadParams


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program of this name and script in front of all others."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_gpu_that_the_machine_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch, "echo GPU 0: H200; echo GPU 1: H200")

    check_gpus(Slot.of([0, 1]))
    with pytest.raises(BadParams, match="--gpu 3: this machine has 2 GPUs, counted from 0"):
        check_gpus(Slot.of([0, 3]))


def test_without_a_driver_that_works_numbers_are_only_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_gpus(Slot.of([7]))

    driver(tmp_path, monkeypatch, "echo no devices were found; exit 6")
    check_gpus(Slot.of([7]))
