"""Schedules over the epochs: the learning rate, and the weight of each epoch's state."""

import math

from pd_core.core.errors import BadParams


def learning_rate(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int, warmup_lr: float
) -> float:
    """Compute the learning rate of an epoch: constant at first, then half a cosine.

    The cosine starts at its peak after the warm-up but is still stretched over
    all epochs, so it never reaches zero (as published).

    Args:
        epoch: from 1.
        epochs: number of epochs.
        peak: the highest rate.
        warmup_epochs: how many epochs keep `warmup_lr`.
        warmup_lr: rate of those.
    """
    if epoch <= warmup_epochs:
        return warmup_lr
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs - 1) / epochs))


def gaussian_weights(epochs: int, *, mean: float, deviation: float) -> tuple[float, ...]:
    """Compute the weight of each epoch in PromptSRC's Gaussian averaging.

    PromptSRC, section 3.2.2 ("self-ensembling").

    Args:
        epochs: number of epochs; they are counted from 1.
        mean: the epoch with the largest weight.
        deviation: in epochs.

    Returns:
        One weight per epoch, with sum 1.

    Raises:
        BadParams: the deviation is not positive, or the mean is so far from all
            epochs that every weight vanishes.
    """
    if deviation <= 0:
        raise BadParams(f"averaging deviation = {deviation}; give a number above 0")
    raw = [math.exp(-0.5 * ((e - mean) / deviation) ** 2) for e in range(1, epochs + 1)]
    total = sum(raw)
    if total == 0:
        raise BadParams(
            f"averaging mean = {mean} with deviation {deviation} gives none of the {epochs} epochs"
            f" a weight; choose a mean between 1 and {epochs}"
        )
    return tuple(value / total for value in raw)
