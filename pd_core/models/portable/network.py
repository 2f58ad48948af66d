"""Network of the student: image tower with prompts, projector and class vectors.

`Network` has CLIP's vision transformer. The operations and their order are those of the trained
student, so that the results are the same; prompts are constants, and the last block computes the
class token only. `ExportedNetwork` has a tower of another architecture.

Shapes: B images, S their side, P patches, W the tower's width, n prompts per layer, d the CLIP's
joint width, D the teacher's, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .preprocess import Preprocess
from .tower import ExportedTower


@dataclass(frozen=True)
class HeadSizes:
    """Sizes behind the image tower."""

    joint_width: int  # d
    feature_width: int  # D
    projector_layers: int  # 1 to 3
    classes: int  # C


@dataclass(frozen=True)
class Sizes(HeadSizes):
    """Sizes of a network with CLIP's vision transformer."""

    image_size: int  # S
    patch_size: int  # side of a patch, in pixels
    width: int  # W
    layers: int  # blocks
    heads: int  # of the attention
    hidden: int  # width of a block's MLP
    activation: str  # `gelu` or `quick_gelu`
    prompt_depth: int  # blocks with prompts; 0 for none
    prompt_length: int  # n


class QuickGELU(nn.Module):
    """Approximation of GELU in OpenAI's CLIPs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x * sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class Block(nn.Module):
    """Residual block: attention and MLP."""

    def __init__(self, sizes: Sizes) -> None:
        """Create a block with random weights."""
        super().__init__()
        self.heads = sizes.heads
        self.norm_1 = nn.LayerNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.norm_2 = nn.LayerNorm(sizes.width)
        self.mlp = nn.Sequential(
            nn.Linear(sizes.width, sizes.hidden),
            ACTIVATIONS[sizes.activation](),
            nn.Linear(sizes.hidden, sizes.width),
        )

    def forward(self, x: Tensor, *, first_only: bool) -> Tensor:
        """Compute all tokens (B, L, W), or with `first_only` the first one: (B, 1, W)."""
        keys = queries = self.norm_1(x)
        if first_only:
            x, queries = x[:, :1], keys[:, :1]
        x = x + self.out(self._attention(queries, keys))
        mlp: Tensor = self.mlp(self.norm_2(x))
        return x + mlp

    def _attention(self, queries: Tensor, keys: Tensor) -> Tensor:
        if queries is keys:
            query, key, value = self.qkv(keys).chunk(3, dim=-1)
        else:
            width = keys.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            query = F.linear(queries, weight[:width], bias[:width])
            key, value = F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """Split the width into heads: (B, L, W) -> (B, heads, L, W / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class StudentNetwork(nn.Module):
    """From pixels to probabilities, by the image tower of a subclass."""

    def __init__(self, sizes: HeadSizes, preprocess: Preprocess) -> None:
        """Create projector and class vectors whose weights are still to be loaded."""
        super().__init__()
        self.sizes = sizes
        self.preprocess = preprocess
        self.projector = projector(sizes.joint_width, sizes.feature_width, sizes.projector_layers)
        self.class_vectors = nn.Parameter(torch.zeros(sizes.classes, sizes.feature_width))
        self.logit_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probabilities (B, C) and unit features (B, D) of uint8 pixels (B, S, S, 3)."""
        features = self.features(self.preprocess.normalise(pixels))
        return self.compare(features), features

    def compare(self, features: Tensor) -> Tensor:
        """Compute probabilities (B, C) of features (B, D)."""
        logits = self.logit_scale.float() * (features @ self.class_vectors.T)
        return logits.softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, S, S) to unit features (B, D) in the teacher's space."""
        return F.normalize(self.projector(self.encode(images)), dim=-1)

    def encode(self, images: Tensor) -> Tensor:
        """Encode normalised images by the tower: (B, 3, S, S) -> (B, d)."""
        raise NotImplementedError


class Network(StudentNetwork):
    """Network with CLIP's vision transformer."""

    sizes: Sizes

    def __init__(self, sizes: Sizes, preprocess: Preprocess | None = None) -> None:
        """Create a network whose weights are still to be loaded; KeyError for its activation.

        Args:
            sizes: of the network.
            preprocess: of its images; None for that of OpenAI's CLIPs.
        """
        super().__init__(sizes, preprocess or Preprocess(sizes.image_size))
        width, side = sizes.width, sizes.image_size // sizes.patch_size
        self.patches = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(side * side + 1, width))
        self.norm_before = nn.LayerNorm(width)
        # `norm_before` is already applied to row 0.
        self.prompts = nn.Parameter(torch.zeros(sizes.prompt_depth, sizes.prompt_length, width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm_after = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.zeros(width, sizes.joint_width))

    def encode(self, images: Tensor) -> Tensor:
        """Encode normalised images by the tower: (B, 3, S, S) -> (B, d)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, P, W)
        first = self.class_token.expand(images.shape[0], 1, -1)
        x = self.norm_before(torch.cat([first, patches], dim=1) + self.positions)
        kept, last = x.shape[1], len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            if layer < len(self.prompts):
                row = self.prompts[layer].expand(images.shape[0], -1, -1)
                x = torch.cat([x[:, :kept], row], dim=1)  # (B, 1 + P + n, W)
            x = block(x, first_only=layer == last)
        pooled: Tensor = self.norm_after(x)[:, 0]  # (B, W)
        return pooled @ self.projection


class ExportedNetwork(StudentNetwork):
    """Network with an exported image tower."""

    def __init__(self, sizes: HeadSizes, tower: ExportedTower, preprocess: Preprocess) -> None:
        """Join a tower with a projector and class vectors whose weights are still to be loaded."""
        super().__init__(sizes, preprocess)
        self.tower = tower

    def encode(self, images: Tensor) -> Tensor:
        """Encode normalised images by the tower: (B, 3, S, S) -> (B, d)."""
        features: Tensor = self.tower(images)
        return features


def projector(width: int, feature_width: int, layers: int) -> nn.Sequential:
    """Make a projector d -> D -> ... -> D, with batch norm and ReLU between linear layers."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, feature_width), nn.BatchNorm1d(feature_width), nn.ReLU()]
        width = feature_width
    return nn.Sequential(*parts, nn.Linear(width, feature_width))
