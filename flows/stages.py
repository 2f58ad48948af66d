"""The stages of a pipeline as tasks: each is one `dvc repro`, tried again where that can help."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, Failed

from flows import addresses, pipeline, slots
from flows.tables import Row, metrics_of
from pd_core.pipeline.processes import PROMPTKD, Ended, run
from pd_core.pipeline.signals import EXIT_STATUS

_PASSING = "Passing"
"""Name of the state of a task whose failure may pass by itself: storage, network, a kill."""

PAUSES = (5.0, 15.0, 60.0, 180.0, 600.0)
"""Seconds before it is tried again."""


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return state.name == _PASSING


@task(
    name="stage",
    retries=len(PAUSES),
    retry_delay_seconds=list(PAUSES),
    retry_condition_fn=_may_pass,
)
def reproduce(
    stages: Sequence[str],
    profile_dir: Path,
    *,
    shared: bool,
    on_row: Callable[[Row], None],
    send: bool = False,
) -> State[Any]:
    """Bring stages up to date, by one command; its output appears in the log as it comes.

    Args:
        stages: their names.
        profile_dir: folder of the profile's `dvc.yaml`.
        shared: whether there is a DVC remote: results are looked for there.
        on_row: told what became of each stage.
        send: whether to send them there.

    Returns:
        Completed or failed. (An exception would fill the log with Prefect's own frames.)
    """
    start = time.monotonic()
    ended = _run(pipeline.command(stages, shared=shared), profile_dir)
    if send and ended.status == 0:
        pushed = _run([*PROMPTKD, "push", *stages], profile_dir)
        if pushed.status != 0:
            why = _what_may_pass(pushed) or pushed.reason
            return Failed(name=_PASSING, message=f"results are not sent: {why}")
    seconds = time.monotonic() - start
    said = f"'{stages[0]}'" if len(stages) == 1 else f"{len(stages)} stages"
    if ended.status == 0:
        for stage, how in pipeline.how(stages, ended.output).items():
            metrics = metrics_of(profile_dir, stage)
            on_row(Row(stage, how, seconds / len(stages), metrics, slots.name()))
        return Completed(message=f"{said} brought up to date")
    if passing := _what_may_pass(ended):
        return Failed(name=_PASSING, message=f"{said}: {passing}")
    for stage in stages:
        on_row(Row(stage, "failed", seconds / len(stages), {}, slots.name()))
    return Failed(
        message=f"{said} failed with status {ended.status}: {ended.reason}; "
        f"`dvc repro {' '.join(stages)}` runs it again"
    )


def _run(command: Sequence[str], profile_dir: Path) -> Ended:
    log, slot = get_run_logger(), slots.own()
    extra = {"CUDA_VISIBLE_DEVICES": slot.visible} if slot else {}
    return run(command, profile_dir, lambda line: log.info("%s", line), extra=extra)


def _what_may_pass(ended: Ended) -> str:
    """Return why a command that failed may succeed the next time, or nothing."""
    if ended.status == EXIT_STATUS or ended.status < 0 or pipeline.was_cut_off(ended.output):
        return "it was told to end"
    silent = addresses.silent()
    return f"no answer from {' and '.join(silent)} ({ended.reason})" if silent else ""
