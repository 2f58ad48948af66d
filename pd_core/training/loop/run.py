"""The surroundings of a training: compute settings, callbacks, checkpoints, feature cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pd_core.core.artifacts import write_json
from pd_core.core.atomic import write_folder
from pd_core.core.config import Compute
from pd_core.core.errors import BadParams
from pd_core.core.hooks import NO_HOOKS, Hooks
from pd_core.training.loop.checkpoints import Checkpoints, History
from pd_core.training.loop.distributed import is_first
from pd_core.training.loop.feature_cache import FeatureCache


@dataclass(frozen=True)
class Run:
    """The surroundings of a training.

    Attributes:
        compute: seed, device, precision and the like.
        hooks: callbacks.
        checkpoints: keep the state; without them a training that is stopped starts anew.
        features: cache of frozen towers' features, if any.
    """

    compute: Compute
    hooks: Hooks = NO_HOOKS
    checkpoints: Checkpoints | None = None
    features: FeatureCache | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.compute.device)

    def required_features(self) -> FeatureCache:
        """Return the cache that features computed beforehand need.

        Raises:
            BadParams: there is none.
        """
        if self.features is None:
            raise BadParams(
                "features computed beforehand need a store; give one, or compute online"
            )
        return self.features


class _Model(Protocol):
    def save(self, path: Path) -> None: ...


def store(model: _Model, history: History, file: Path, run: Run) -> None:
    """Write a model and, beside it, `history.json`; then its checkpoints are of no more use."""
    if not is_first():
        return
    with write_folder(file.parent) as folder:
        model.save(folder / file.name)
        write_json(folder / "history.json", history)
    if run.checkpoints is not None:
        run.checkpoints.remove()
