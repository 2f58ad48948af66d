"""Callbacks through which a stage reports, and is asked to end."""

from collections.abc import Callable
from dataclasses import dataclass

Metrics = dict[str, float]

OnEpoch = Callable[[int, Metrics], None]
OnLoss = Callable[[int, float], None]
OnNote = Callable[[str], None]
OnProgress = Callable[[int, int], None]


def _nothing(*_: object) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a stage; each does nothing by default.

    Attributes:
        interrupted: whether a training is to save its state and end now.
        on_epoch: called for each epoch, those before a checkpoint too, with its number and metrics.
        on_progress: called with units done and units in all.
        on_loss: called now and then with steps done and the mean loss since the last call.
        on_note: called with a line for people to read.
    """

    interrupted: Callable[[], bool] = _never
    on_epoch: OnEpoch = _nothing
    on_progress: OnProgress = _nothing
    on_loss: OnLoss = _nothing
    on_note: OnNote = _nothing


NO_HOOKS = Hooks()
