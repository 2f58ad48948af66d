"""Inputs of the benchmarks: models of real sizes with random weights, names, images."""

import os
import platform
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiny
import torch
import trainings
from torch import Tensor, nn
from torch.optim import SGD

from pd_core.data.loading.images import Batch
from pd_core.models import clip
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Run, make_optimizer
from pd_core.training.loop.views import CachedViews, Source

LARGE, SMALL = "ViT-L-14-quickgelu", "ViT-B-16-quickgelu"
TINY_LARGE, TINY_SMALL = "tiny-large", "tiny-small"

_RATE = 1e-5  # as in the first epoch; random models would not survive larger steps


def build(name: str) -> ClipTowers:
    """Make a frozen CLIP with random weights; nothing is downloaded."""
    if name.startswith("tiny"):
        return tiny.towers(name, seed=len(name), joint_width=24 if name == TINY_LARGE else 16)
    import open_clip

    config: dict[str, Any] = dict(open_clip.get_model_config(name))
    config.pop("custom_text", None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = open_clip.CustomTextCLIP(**config)
    return clip.freeze(name, model, open_clip.get_tokenizer(name))


def class_names(count: int) -> list[str]:
    """Choose names of ImageNet's classes, evenly spaced; the longest one is always there."""
    names, longest = _imagenet()
    chosen = [names[number * len(names) // count] for number in range(count)]
    if longest not in chosen:
        chosen[-1] = longest
    return chosen


def images(towers: ClipTowers, count: int) -> Tensor:
    """Make random images: (count, 3, H, W)."""
    size = towers.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def optimizer(module: nn.Module) -> SGD:
    """Make the optimiser of both stages, with a rate that leaves random models in peace."""
    return make_optimizer(module.parameters(), lr=_RATE, momentum=0.9, weight_decay=5e-4)


class OneBatch:
    """Batches of an epoch that has one, the same in every epoch."""

    def __init__(self, views: Tensor) -> None:
        self._views = views
        self.corrupt: set[int] = set()
        self.left_out = 0

    @property
    def steps(self) -> int:
        return 1

    def names(self, indices: Sequence[int]) -> list[str]:
        return [str(index) for index in indices]

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        if epoch and not start:
            views = {Preprocess(self._views.shape[-1]): self._views}
            yield Batch(torch.arange(len(self._views)), views, epoch, 0)


def record(folder: Path, views: Tensor, encode: Source, *, width: int) -> CachedViews:
    """Cache the features of a frozen tower for one batch, (B, width), as the stages do."""
    store = FeatureCache(folder, limit=2**30)
    place = store.place("benchmark", {"width": width})
    recorded = CachedViews(store, place, count=len(views), width=width, device=torch.device("cpu"))
    run = Run(trainings.COMPUTE)
    recorded.complete(1, lambda: (OneBatch(views), encode), run, what="the answers")
    return recorded


def machine() -> dict[str, str]:
    """Return what times depend on: processor, cores and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": str(cores),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "open_clip_torch")},
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@cache
def _imagenet() -> tuple[list[str], str]:
    from open_clip import IMAGENET_CLASSNAMES, SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return IMAGENET_CLASSNAMES, max(
        IMAGENET_CLASSNAMES, key=lambda name: len(tokenizer.encode(name))
    )
