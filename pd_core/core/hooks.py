"""Callbacks of a stage: progress, metrics, log messages and interruption."""

from collections.abc import Callable
from dataclasses import dataclass

Metrics = dict[str, float]

OnEpoch = Callable[[int, Metrics], None]
OnLoss = Callable[[int, float], None]
OnNote = Callable[[str], None]
OnProgress = Callable[[int, int], None]
OnStart = Callable[[object], None]


def _nothing(*_: object) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a stage; each does nothing by default.

    Attributes:
        interrupted: returns True when a training should save its state and end.
        on_epoch: called after each epoch, and for those of a checkpoint, with number and metrics.
        on_progress: called with the number of units done and in all.
        on_loss: called from time to time with steps done and the mean loss since the last call.
        on_note: called with a log message.
        on_start: called with the module that is trained, before its first epoch.
    """

    interrupted: Callable[[], bool] = _never
    on_epoch: OnEpoch = _nothing
    on_progress: OnProgress = _nothing
    on_loss: OnLoss = _nothing
    on_note: OnNote = _nothing
    on_start: OnStart = _nothing


NO_HOOKS = Hooks()
