"""Configuration of the training loop, and of the views it trains on."""

from typing import Annotated

from pydantic import AfterValidator, Field

from pd_core.core.config import Config, Count, CountOrZero, NotNegative, Positive
from pd_core.core.options import OnNonFinite


class OptimConfig(Config):
    """SGD and its schedule."""

    epochs: Count
    view_epochs: Count | None  # after so many epochs their batches come again; None: never
    accumulate: Count  # batches whose gradients are averaged for one step of the optimiser
    lr: Positive  # peak
    warmup_epochs: CountOrZero  # at `warmup_lr`
    warmup_lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative  # on everything trained
    max_grad_norm: Positive | None  # gradients are scaled down to this norm; None leaves them
    on_non_finite: OnNonFinite

    @property
    def distinct_epochs(self) -> int:
        """Number of epochs with views of their own."""
        return self.epochs if self.view_epochs is None else min(self.epochs, self.view_epochs)

    def source_epoch(self, epoch: int) -> int:
        """Return the epoch, from 1, whose views are shown in an epoch."""
        return epoch if self.view_epochs is None else (epoch - 1) % self.view_epochs + 1


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError("give two shares of the image, 0 < least <= largest <= 1")
    return scale


class ViewConfig(Config):
    """Augmented views of the training images."""

    batch_size: Count  # images per step, of all processes together
    crop_scale: Annotated[tuple[float, float], AfterValidator(_ordered)]  # part of an image shown
    flip: bool  # mirror half of the views


class ImagePromptConfig(Config):
    """Prompts of an image tower."""

    image_length: Count  # prompts per layer
    image_depth: Count  # layers with prompts; clipped to what the tower has
