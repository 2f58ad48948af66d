"""Collectives of the ranks that train one model: each computes a part of every batch.

The ranks are started by `promptkd` itself or by torchrun. Each reads and encodes its part of a
batch; the features of all ranks are then gathered, so that whatever needs the whole batch (batch
norm, loss, accuracy) is computed by each rank as a single process would. Without a process group
every function here returns its input.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pd_core.core.errors import BadParams, PdError

# The launcher notices a rank that has ended. A timeout would only end the ranks that wait while
# rank 0 evaluates a student.
_TIMEOUT = timedelta(days=1)

_Any = TypeVar("_Any")


class LostProcess(PdError):
    """Another rank has ended, and reports the reason itself."""


@contextmanager
def process_group(
    device: str, *, rank: int, world_size: int, local_rank: int, init_method: str
) -> Iterator[None]:
    """Join the process group of a training.

    Args:
        device: `cpu`, or `cuda` for one GPU per rank.
        rank: of this process.
        world_size: number of ranks.
        local_rank: GPU of this process, if it uses one.
        init_method: URL by which the ranks find each other, as torch takes it.

    Raises:
        BadParams: there are fewer GPUs than ranks, or the device is for one process only.
        LostProcess: another rank has ended.
    """
    if device not in ("cpu", "cuda"):
        raise BadParams(
            f"device {device} for {world_size} processes; give cuda, for a GPU each, or cpu"
        )
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise BadParams(f"run.processes = {world_size}, but there are {gpus} GPUs to be seen")
        torch.cuda.set_device(local_rank)  # the meaning of `cuda` from now on
    with _peers_required():
        dist.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=init_method, rank=rank, world_size=world_size, timeout=_TIMEOUT,
        )  # fmt: skip
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def count() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return True in rank 0, which writes and reports."""
    return rank() == 0


def part(items: Sequence[_Any]) -> Sequence[_Any]:
    """Return this rank's slice of a sequence; the slices of all ranks, in order, cover it."""
    size, index, ranks = len(items), rank(), count()
    return items[size * index // ranks : size * (index + 1) // ranks]


def gathered(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks (all-gather with autograd).

    Every rank then computes the whole loss, but the gradient of its own rows only. Gradients are
    multiplied by the number of ranks, so that after `average_gradients` all of them are those of
    the loss, whether they flow through this function or not.

    Args:
        rows: (B, ...) of this rank; B may differ between ranks, and be 0.

    Returns:
        (sum of all B, ...), on the same device.

    Raises:
        LostProcess: another rank has ended.
    """
    if count() == 1:
        return rows
    gathered_rows: Tensor = _Gather.apply(rows)
    return gathered_rows


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all ranks.

    Raises:
        LostProcess: another rank has ended.
    """
    if count() == 1:
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    with _peers_required():
        dist.all_reduce(joint)
    joint /= count()
    parts = torch.split(joint, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def any_of(condition: bool) -> bool:  # noqa: FBT001
    """Return True if a condition holds in any rank.

    Raises:
        LostProcess: another rank has ended.
    """
    if count() == 1:
        return condition
    flag = torch.tensor(int(condition))
    with _peers_required():
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def union(numbers: Iterable[int]) -> set[int]:
    """Return the union of the ranks' numbers.

    Raises:
        LostProcess: another rank has ended.
    """
    if count() == 1:
        return set(numbers)
    gathered_numbers: list[Any] = [None] * count()
    with _peers_required():
        dist.all_gather_object(gathered_numbers, sorted(numbers))
    return set().union(*gathered_numbers)


def from_first(compute: Callable[[], _Any]) -> _Any:
    """Return what rank 0 computes, to all ranks (broadcast).

    Args:
        compute: called in rank 0 only; its tensors are on the CPU.

    Raises:
        LostProcess: another rank has ended.
    """
    if count() == 1:
        return compute()
    values: list[Any] = [compute() if is_first() else None]
    with _peers_required():
        dist.broadcast_object_list(values, src=0)
    value: _Any = values[0]
    return value


class _Gather(torch.autograd.Function):
    """See `gathered`."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        length, lengths = torch.tensor(len(rows)), torch.empty(count(), dtype=torch.int64)
        with _peers_required():
            # On the CPU, so that nothing waits for the device.
            dist.all_gather(list(lengths.unbind()), length)
            sizes = lengths.tolist()
            padded = rows.new_zeros(max(sizes), *rows.shape[1:])
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
        context.before, context.length = sum(sizes[: rank()]), len(rows)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return count() * gradient[context.before : context.before + context.length]


@contextmanager
def _peers_required() -> Iterator[None]:
    """Turn an error of a collective into `LostProcess`: another rank does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(f"another process of this training has ended ({error})") from None
