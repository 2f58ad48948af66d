"""Processes that train together: each computes its part of every batch, all take the same step.

They are started by `launch`, or by torchrun. Every one reads its part of a batch and sends it
through the towers; the features of all are then gathered, so that whatever looks at a whole batch
(batch norm, loss, accuracy) is computed by each as one process alone would. In a process that is
alone every function here returns what it was given.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pd_core.core.errors import BadParams, PdError

# Whoever started the processes notices that one has ended. A timeout would only end those that
# wait while the first one measures a student.
_TIMEOUT = timedelta(days=1)

_Any = TypeVar("_Any")


class LostProcess(PdError):
    """Another process of the training has ended; it says why itself."""


@contextmanager
def joined(device: str, *, number: int, processes: int, gpu: int, meeting: str) -> Iterator[None]:
    """Join the processes that train together.

    Args:
        device: where they compute: `cpu`, or `cuda` for a GPU each.
        number: which of them this one is, from 0.
        processes: how many there are.
        gpu: this one's, where they use any.
        meeting: URL by which they find each other, as torch takes it.

    Raises:
        BadParams: there are fewer GPUs than processes, or the device is for one process only.
        LostProcess: another one has ended.
    """
    if device not in ("cpu", "cuda"):
        raise BadParams(
            f"device {device} for {processes} processes; give cuda, for a GPU each, or cpu"
        )
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if gpu >= gpus:
            raise BadParams(f"run.processes = {processes}, but there are {gpus} GPUs to be seen")
        torch.cuda.set_device(gpu)  # from now on it is what `cuda` means
    with _all_there():
        dist.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=meeting, rank=number, world_size=processes, timeout=_TIMEOUT,
        )  # fmt: skip
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def part(items: Sequence[_Any]) -> Sequence[_Any]:
    """Return this process's part of a sequence; the parts of all, one after another, are it."""
    size, mine, processes = len(items), rank(), count()
    return items[size * mine // processes : size * (mine + 1) // processes]


def gathered(rows: Tensor) -> Tensor:
    """Put the rows of all processes together, in their order.

    Every process then computes the whole loss, but the gradient of its own rows only. They are
    multiplied by the number of processes, so that after `average_gradients` all gradients are
    those of the loss, whether they flow through here or not.

    Args:
        rows: (B, ...) of this process; B may differ, and be 0.

    Returns:
        (sum of all B, ...), on the same device.

    Raises:
        LostProcess: another one has ended.
    """
    if count() == 1:
        return rows
    together: Tensor = _Gather.apply(rows)
    return together


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes.

    Raises:
        LostProcess: another one has ended.
    """
    if count() == 1:
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    with _all_there():
        dist.all_reduce(joint)
    joint /= count()
    parts = torch.split(joint, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def any_of(mine: bool) -> bool:  # noqa: FBT001
    """Whether something is so in any process.

    Raises:
        LostProcess: another one has ended.
    """
    if count() == 1:
        return mine
    answer = torch.tensor(int(mine))
    with _all_there():
        dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


def union(mine: Iterable[int]) -> set[int]:
    """Return the numbers that any process has.

    Raises:
        LostProcess: another one has ended.
    """
    if count() == 1:
        return set(mine)
    found: list[Any] = [None] * count()
    with _all_there():
        dist.all_gather_object(found, sorted(mine))
    return set().union(*found)


def from_first(compute: Callable[[], _Any]) -> _Any:
    """Return what the first process computes; the others wait for it.

    Args:
        compute: called in the first process only; its tensors are on the CPU.

    Raises:
        LostProcess: another one has ended.
    """
    if count() == 1:
        return compute()
    answer: list[Any] = [compute() if is_first() else None]
    with _all_there():
        dist.broadcast_object_list(answer, src=0)
    only: _Any = answer[0]
    return only


class _Gather(torch.autograd.Function):
    """See `gathered`."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        length, lengths = torch.tensor(len(rows)), torch.empty(count(), dtype=torch.int64)
        with _all_there():
            # On the CPU, so that nothing waits for the device.
            dist.all_gather(list(lengths.unbind()), length)
            sizes = lengths.tolist()
            filled = rows.new_zeros(max(sizes), *rows.shape[1:])
            filled[: len(rows)] = rows
            everyone = [torch.empty_like(filled) for _ in sizes]
            dist.all_gather(everyone, filled)
        context.before, context.length = sum(sizes[: rank()]), len(rows)
        return torch.cat([one[:size] for one, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return count() * gradient[context.before : context.before + context.length]


@contextmanager
def _all_there() -> Iterator[None]:
    """Say what an error of torch's means here: another process does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(f"another process of this training has ended ({error})") from None
