"""Batches on their way to the device."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pd_core.data.loading.images import Batch


def transferred(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the positions (B,) of each batch, on the CPU, and the batch on the device.

    Each batch is copied to a GPU while the step before it computes.
    """
    if device.type == "cuda":
        yield from double_buffered(batches, device)
        return
    for batch in batches:
        yield batch.indices, batch.to(device)


def double_buffered(
    batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield what `transferred` yields, one batch behind those that are read and copied.

    Copies are from pinned memory, on a stream of their own. The stream first waits for the steps
    so far, whose batches' memory it may use again.
    """
    module = torch.get_device_module(device)
    stream = module.Stream(device)
    copied = None
    for batch in batches:
        stream.wait_stream(module.current_stream(device))
        with module.stream(stream):
            following = batch.indices, batch.to(device), stream.record_event()
        if copied is not None:
            yield _ready(module, *copied)
        copied = following
    if copied is not None:
        yield _ready(module, *copied)


def _ready(module: Any, indices: Tensor, batch: Batch, done: Any) -> tuple[Tensor, Batch]:
    """Let the step that follows wait, on the device, for the copy of its batch."""
    module.current_stream(batch.indices.device).wait_event(done)
    return indices, batch
