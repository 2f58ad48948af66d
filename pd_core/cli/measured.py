"""Program that runs one stage as its command does, and records its timeline for a rehearsal."""

from __future__ import annotations

import sys
from pathlib import Path

from pd_core.cli import verbs
from pd_core.cli.common import Setting
from pd_core.core.errors import PdError
from pd_core.pipeline import dvc, processes
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import load_settings, telemetry_off
from pd_core.rehearsal.task import Clock, Task


def main(task_file: str, timeline_file: str) -> None:
    """Run the task of a file; errors that users can correct end in one line and exit status 2."""
    verbs.tune_garbage_collector()
    telemetry_off()
    processes.end_at_once()
    dvc.end_with_parent()
    task = Task.read(Path(task_file))
    job = task.job()
    clock = Clock(task.started, gpu=job.device.startswith("cuda"))
    setting = Setting(job, "rehearsal", Path(), load_settings(), on_progress=clock.progress)
    try:
        verbs.run_stage(task.stage, setting)
    except PdError as error:
        sys.stderr.write(f"error: {masked(str(error))}\n")
        raise SystemExit(2) from None
    clock.write(Path(timeline_file))


if __name__ == "__main__":
    main(*sys.argv[1:])
