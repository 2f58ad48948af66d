"""Export of an image tower, with its prompts, to a graph of torch's operations."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from pd_core.core.errors import BadArtifact
from pd_core.models.portable import tower as portable
from pd_core.models.portable.tower import IMAGES, Input, encoded
from pd_core.models.student import Student

_EXAMPLES = 2  # torch takes a batch of one for a constant


def export_tower(student: Student, tower: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Export a student's image tower, in fp32 on the CPU, for any number of images.

    Returns:
        The graph of an `ExportedTower`, and its weights.

    Raises:
        BadArtifact: torch cannot export it, or it has operations that an `ExportedTower` lacks.
    """
    encoder = _Encoder(_in_fp32(student, tower)).eval().requires_grad_(requires_grad=False)
    size = student.towers.image_size
    try:
        with torch.no_grad():
            program = torch.export.export(
                encoder,
                (torch.zeros(_EXAMPLES, 3, size, size),),
                dynamic_shapes=({0: Dim("batch", min=1)},),
                strict=False,
            )
        return _graph(program)
    except Exception as error:  # torch's exporter raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadArtifact(
            f"model '{student.towers.name}' cannot be deployed: its image tower cannot be exported"
            f" ({reason}); use another model for the student"
        ) from None


class _Encoder(nn.Module):
    """The image tower of a student with its prompts as one module."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.visual, self.prompts = student.towers.visual, student.image_prompts
        self._encode = student.encode

    def forward(self, images: Tensor) -> Tensor:
        return self._encode(images)


def _in_fp32(student: Student, tower: Any) -> Student:
    """Return a copy of a student, but for its projector, with a tower."""
    visual = copy.deepcopy(tower).float().cpu()
    for module in list(visual.modules()):
        if hasattr(module, "reparameterize"):  # MobileCLIP's parallel branches become one
            module.reparameterize()
    towers = replace(student.towers, visual=visual)
    with torch.random.fork_rng(devices=[]):
        return Student(towers, copy.deepcopy(student.image_prompts), 1, layers=1)


def _graph(program: ExportedProgram) -> tuple[dict[str, Any], dict[str, Tensor]]:
    program.graph.eliminate_dead_code(is_impure_node=_is_needed)
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    tensors = {**program.state_dict, **program.constants}
    inputs: dict[fx.Node, Any] = {}
    weights: dict[str, Tensor] = {}
    steps: list[Any] = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            steps.append(_step(node, inputs))
            inputs[node] = Input(len(steps) - 1)
        elif node.op == "placeholder" and sources[node.name].kind is InputKind.USER_INPUT:
            inputs[node] = Input(IMAGES)
        elif node.op == "placeholder" and node.users:
            name = sources[node.name].target
            key = name.replace(".", "/")  # torch splits names at points
            inputs[node] = Input(key)
            weights[key] = tensors[name].detach().clone().contiguous()
    ((features,),) = program.graph.output_node().args
    shapes = {key: list(value.shape) for key, value in weights.items()}
    return {"weights": shapes, "steps": steps, "features": inputs[features].key}, weights


def _is_needed(node: fx.Node) -> bool:
    """Return True for nodes whose results need not be used: they change a tensor in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


def _step(node: fx.Node, inputs: dict[fx.Node, Any]) -> list[Any]:
    arguments, options = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
    named = {key: encoded(value) for key, value in options.items()}
    return [_name(node.target), encoded(arguments), named]


def _name(target: Any) -> str:
    """Return the name by which an `ExportedTower` finds a function."""
    is_scalar = getattr(target, "__module__", "") == "_operator"
    name = f"operator.{target.__name__}" if is_scalar else str(target)
    if portable.operation(name) is not target:
        raise ValueError(f"{name} is another function")
    return name
