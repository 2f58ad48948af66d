"""Fold a student and its class vectors into one network that needs no other file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pd_core.core.errors import BadArtifact
from pd_core.mlops.export.tower import export_tower
from pd_core.models.portable.network import (
    ACTIVATIONS,
    ExportedNetwork,
    HeadSizes,
    Network,
    Sizes,
    StudentNetwork,
)
from pd_core.models.portable.tower import ExportedTower
from pd_core.models.student import Student
from pd_core.models.towers import is_plain_image

_TOLERANCE = 1e-5  # between features of unit length, for rounding
_EPSILON = nn.LayerNorm(1).eps


def fold(student: Student, vectors: Tensor) -> StudentNetwork:
    """Fold a student (in evaluation mode) and class vectors (C, D; unit length) into one network.

    Returns:
        The network, in fp32 on the CPU, with the student's output.

    Raises:
        BadArtifact: the image tower cannot be exported.
    """
    tower = student.towers.visual if student.tower is None else student.tower
    network = (_plain if _is_plain(tower) else _exported)(student, tower, vectors)
    network.eval().requires_grad_(requires_grad=False)
    _check(student, network)
    return network


def _is_plain(tower: Any) -> bool:
    """Return True for the vision transformer of CLIP, whose parts are those of `Network`."""
    return (
        is_plain_image(tower)
        and tower.pool_type == "tok"
        and tower.conv1.kernel_size[0] == tower.conv1.kernel_size[1]
        and all(map(_is_norm, (tower.ln_pre, tower.ln_post)))
        and all(
            all(isinstance(scale, nn.Identity) for scale in (block.ls_1, block.ls_2))
            and all(map(_is_norm, (block.ln_1, block.ln_2)))
            and _activation(block)
            for block in tower.transformer.resblocks
        )
    )


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) and layer.eps == _EPSILON


def _activation(block: Any) -> str | None:
    """Return the name of a block's activation; None for one that `Network` lacks."""
    kind = type(block.mlp.gelu).__name__
    return next((name for name, own in ACTIVATIONS.items() if own.__name__ == kind), None)


def _exported(student: Student, tower: Any, vectors: Tensor) -> ExportedNetwork:
    graph, weights = export_tower(student, tower)
    exported = ExportedTower(graph)
    exported.load_state_dict(weights, assign=True)
    sizes = HeadSizes(**_head_sizes(student, vectors))
    network = ExportedNetwork(sizes, exported, student.towers.preprocess)
    state = _on_cpu(_head(student, vectors))
    network.load_state_dict({**state, **_renamed(exported, "tower")})
    return network


def _plain(student: Student, tower: Any, vectors: Tensor) -> Network:
    network = Network(_sizes(student, tower, vectors), student.towers.preprocess)
    network.load_state_dict(_on_cpu(_head(student, vectors) | _tower(student, tower)))
    return network


def _head_sizes(student: Student, vectors: Tensor) -> dict[str, int]:
    linear = [part for part in student.projector if isinstance(part, nn.Linear)]
    return {
        "joint_width": linear[0].in_features,
        "feature_width": linear[-1].out_features,
        "projector_layers": len(linear),
        "classes": len(vectors),
    }


def _sizes(student: Student, tower: Any, vectors: Tensor) -> Sizes:
    block = tower.transformer.resblocks[0]
    prompts = student.image_prompts
    return Sizes(
        **_head_sizes(student, vectors),
        image_size=student.towers.image_size,
        patch_size=int(tower.conv1.kernel_size[0]),
        width=student.towers.image_width,
        layers=student.towers.image_layers,
        heads=int(block.attn.num_heads),
        hidden=int(block.mlp.c_fc.out_features),
        activation=str(_activation(block)),
        prompt_depth=0 if prompts is None else prompts.depth,
        prompt_length=0 if prompts is None else prompts.length,
    )


def _head(student: Student, vectors: Tensor) -> dict[str, Tensor]:
    return {
        "class_vectors": vectors,
        "logit_scale": torch.tensor(student.logit_scale, dtype=torch.float64),
        **_renamed(student.projector, "projector"),
    }


def _tower(student: Student, tower: Any) -> dict[str, Tensor]:
    state = {
        "patches.weight": tower.conv1.weight,
        "class_token": tower.class_embedding,
        "positions": tower.positional_embedding,
        "projection": tower.proj,
        "prompts": _prompts(student, tower),
        **_renamed(tower.ln_pre, "norm_before"),
        **_renamed(tower.ln_post, "norm_after"),
    }
    for layer, block in enumerate(tower.transformer.resblocks):
        prefix = f"blocks.{layer}"
        state |= {
            f"{prefix}.qkv.weight": block.attn.in_proj_weight,
            f"{prefix}.qkv.bias": block.attn.in_proj_bias,
            **_renamed(block.attn.out_proj, f"{prefix}.out"),
            **_renamed(block.ln_1, f"{prefix}.norm_1"),
            **_renamed(block.ln_2, f"{prefix}.norm_2"),
            **_renamed(block.mlp.c_fc, f"{prefix}.mlp.0"),
            **_renamed(block.mlp.c_proj, f"{prefix}.mlp.2"),
        }
    return state


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in state.items()}


def _prompts(student: Student, tower: Any) -> Tensor:
    """Return the prompts as the blocks receive them: (depth, n, W)."""
    prompts = student.image_prompts
    if prompts is None:
        return torch.zeros(0, 0, student.towers.image_width)
    with torch.no_grad():
        first = tower.ln_pre(prompts.tokens[:1].to(tower.conv1.weight.dtype))
        return torch.cat([first.float(), prompts.tokens[1:]])


def _renamed(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


@torch.inference_mode()
def _check(student: Student, network: StudentNetwork) -> None:
    """Refuse a network whose features differ from the student's."""
    size = network.preprocess.size
    generator = torch.Generator().manual_seed(0)
    half = next(student.towers.visual.parameters()).dtype != torch.float32
    for count in (1, 3):
        images = torch.randn(count, 3, size, size, generator=generator)
        expected = student(images.to(student.towers.device)).cpu()
        error = float((network.features(images) - expected).abs().max())
        if not error < (1e-2 if half else _TOLERANCE):
            raise BadArtifact(
                f"model '{student.towers.name}' cannot be deployed: its features differ by "
                f"{error:.1e} after the export; use another model for the student"
            )
