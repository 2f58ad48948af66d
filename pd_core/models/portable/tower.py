"""Image tower as a list of torch's operations, for towers of any architecture.

The list is a graph of `torch.export` as JSON: it needs no code of the model, and runs no operations
but torch's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGES, DEVICE = "images", "device"
"""Inputs of operations beside weights and earlier results."""

_SCALARS = ("add", "floordiv", "getitem", "mul", "neg", "sub", "truediv")  # on sizes and tuples
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Input:
    """Argument of an operation: `IMAGES`, `DEVICE`, a weight, or an earlier step by its number."""

    key: str | int


@dataclass(frozen=True)
class Step:
    """An operation with its arguments, and the earlier steps whose results it uses last."""

    operation: Callable[..., Any]
    arguments: Any
    options: Mapping[str, Any]
    done: Sequence[int]


class ExportedTower(nn.Module):
    """Image tower that computes the operations of a graph in their order.

    Attributes:
        graph: JSON value with the shapes of `weights`, with `steps`, each a list of the operation's
            name, its arguments and its options, and with the step whose result is `features`.
    """

    def __init__(self, graph: Mapping[str, Any]) -> None:
        """Create a tower whose weights are still to be loaded.

        Raises:
            LookupError, TypeError, ValueError: the graph is corrupt.
        """
        super().__init__()
        self.graph = graph
        for name, shape in graph["weights"].items():
            self.register_buffer(name, torch.empty(shape))
        self._features: int = graph["features"]
        self._steps = tuple(_steps(graph["steps"], self._features))

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images: (B, 3, S, S) -> (B, d)."""
        values: dict[str | int, Any] = {IMAGES: images, DEVICE: images.device}
        values.update(self.named_buffers())
        for number, step in enumerate(self._steps):
            arguments, options = _filled(step.arguments, values), _filled(step.options, values)
            values[number] = step.operation(*arguments, **options)
            for earlier in step.done:  # free its memory
                del values[earlier]
        features: Tensor = values[self._features]
        return features


def operation(name: str) -> Callable[..., Any]:
    """Return an operation of torch or on sizes by its name, as `aten.add.Tensor`, `operator.mul`.

    Raises:
        AttributeError, ValueError: there is none.
    """
    match name.split("."):
        case ["operator", function] if function in _SCALARS:
            return getattr(operator, function)  # type: ignore[no-any-return]
        case ["aten", packet, overload]:
            function = getattr(getattr(torch.ops.aten, packet), overload)
            if isinstance(function, torch._ops.OpOverload) and not _uses_files(function):
                return function
    raise ValueError(f"operation '{name}' is not supported")


def encoded(value: Any) -> Any:
    """Return an argument of an operation, with `Input`s, as a JSON value.

    Raises:
        ValueError: it is of a type that has none.
    """
    match value:
        case Input(key):
            return {"input": key}
        case torch.device():
            return {"input": DEVICE}
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case list() | tuple():
            return [encoded(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(f"argument {value!r} of type {type(value).__name__} is not supported")


def _decoded(value: Any) -> Any:
    match value:
        case {"input": str() | int() as key}:
            return Input(key)
        case {"torch": str() as name}:
            constant = getattr(torch, name)
            if isinstance(constant, _CONSTANTS):
                return constant
        case {"float": str() as number}:
            return float(number)
        case list():
            return [_decoded(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(f"argument {value} is not supported")


def _steps(rows: Sequence[Any], features: int) -> Iterator[Step]:
    decoded = [
        (operation(name), _decoded(arguments), {key: _decoded(v) for key, v in options.items()})
        for name, arguments, options in rows
    ]
    last_use = {
        key: number
        for number, (_, arguments, options) in enumerate(decoded)
        for key in _keys([arguments, *options.values()])
        if isinstance(key, int) and key != features
    }
    done: list[list[int]] = [[] for _ in decoded]
    for earlier, number in last_use.items():
        done[number].append(earlier)
    for row, unused in zip(decoded, done, strict=True):
        yield Step(*row, unused)


def _keys(value: Any) -> Iterator[str | int]:
    if isinstance(value, Input):
        yield value.key
    elif isinstance(value, list):
        for each in value:
            yield from _keys(each)


def _filled(value: Any, values: Mapping[str | int, Any]) -> Any:
    """Replace the `Input`s in an argument."""
    if isinstance(value, Input):
        return values[value.key]
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    return value


def _uses_files(function: torch._ops.OpOverload) -> bool:
    return any(argument.name == "filename" for argument in function._schema.arguments)
