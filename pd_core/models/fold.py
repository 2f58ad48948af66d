"""Fold a trained student and its class vectors into one network that stands alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pd_core.errors import BadArtifact
from pd_core.models.student import Student
from pd_core.portable.network import ACTIVATIONS, Network, Sizes

_TOLERANCE = 1e-5  # of unit features; the same operations differ by rounding alone


def fold(student: Student, vectors: Tensor) -> Network:
    """Make a network of a student's tower, prompts and projector, and class vectors.

    Args:
        student: in evaluation mode.
        vectors: (C, D), unit length, which it is compared with.

    Returns:
        The network, in fp32 on the CPU; it answers as the student does.

    Raises:
        BadArtifact: the tower has parts that the network has not.
    """
    tower = student.towers.visual if student.tower is None else student.tower
    network = Network(_sizes(student, tower, len(vectors)))
    network.load_state_dict(_state(student, tower, vectors))
    network.eval().requires_grad_(requires_grad=False)
    _check(student, network)
    return network


def _sizes(student: Student, tower: Any, classes: int) -> Sizes:
    linear = [part for part in student.projector if isinstance(part, nn.Linear)]
    block = tower.transformer.resblocks[0]
    prompts = student.image_prompts
    return Sizes(
        image_size=student.towers.image_size,
        patch_size=int(tower.conv1.kernel_size[0]),
        width=student.towers.image_width,
        layers=student.towers.image_layers,
        heads=int(block.attn.num_heads),
        hidden=int(block.mlp.c_fc.out_features),
        activation=_activation(block.mlp.gelu, student.towers.name),
        prompt_depth=0 if prompts is None else prompts.depth,
        prompt_length=0 if prompts is None else prompts.length,
        joint_width=linear[0].in_features,
        feature_width=linear[-1].out_features,
        projector_layers=len(linear),
        classes=classes,
    )


def _activation(layer: nn.Module, model: str) -> str:
    for name, kind in ACTIVATIONS.items():
        if type(layer).__name__ == kind.__name__:
            return name
    raise BadArtifact(
        f"model '{model}' has the activation {type(layer).__name__}; a student that stands alone "
        f"can have {', '.join(ACTIVATIONS)}"
    )


def _state(student: Student, tower: Any, vectors: Tensor) -> dict[str, Tensor]:
    state = {
        "patches.weight": tower.conv1.weight,
        "class_token": tower.class_embedding,
        "positions": tower.positional_embedding,
        "projection": tower.proj,
        "prompts": _prompts(student, tower),
        "class_vectors": vectors,
        "logit_scale": torch.tensor(student.logit_scale, dtype=torch.float64),
        **_renamed(tower.ln_pre, "norm_before"),
        **_renamed(tower.ln_post, "norm_after"),
        **_renamed(student.projector, "projector"),
    }
    for layer, block in enumerate(tower.transformer.resblocks):
        here = f"blocks.{layer}"
        state |= {
            f"{here}.qkv.weight": block.attn.in_proj_weight,
            f"{here}.qkv.bias": block.attn.in_proj_bias,
            **_renamed(block.attn.out_proj, f"{here}.out"),
            **_renamed(block.ln_1, f"{here}.norm_1"),
            **_renamed(block.ln_2, f"{here}.norm_2"),
            **_renamed(block.mlp.c_fc, f"{here}.mlp.0"),
            **_renamed(block.mlp.c_proj, f"{here}.mlp.2"),
        }
    return {key: value.detach().cpu() for key, value in state.items()}


def _prompts(student: Student, tower: Any) -> Tensor:
    """Return the prompts' rows as the blocks get them: (depth, n, W)."""
    prompts = student.image_prompts
    if prompts is None:
        return torch.zeros(0, 0, student.towers.image_width)
    with torch.no_grad():
        first = tower.ln_pre(prompts.tokens[:1].to(tower.conv1.weight.dtype))
        return torch.cat([first.float(), prompts.tokens[1:]])


def _renamed(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


@torch.inference_mode()
def _check(student: Student, network: Network) -> None:
    """Refuse a tower with parts that were not looked at, such as layer scales."""
    size = network.sizes.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    wanted = student(images.to(student.towers.device)).cpu()
    off = float((network.features(images) - wanted).abs().max())
    half = student.towers.visual.conv1.weight.dtype != torch.float32
    if not off < (1e-2 if half else _TOLERANCE):
        raise BadArtifact(
            f"model '{student.towers.name}' cannot stand alone: its features differ by {off:.1e}; "
            f"give a CLIP with a plain vision transformer"
        )
