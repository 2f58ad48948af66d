"""Students to serve, with random weights: as small as the embedded one, as large as the paper's."""

from __future__ import annotations

import open_clip
import torch
from torch.nn.functional import normalize

from pd_core.models import clip
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.fold import fold
from pd_core.models.student import Student
from pd_core.portable.student import PortableStudent

EMBEDDED, PAPER = "embedded-student", "ViT-B-16"


def student(model: str, *, classes: int = 48, width: int = 512) -> PortableStudent:
    """Make a student that was never trained.

    Args:
        model: `EMBEDDED` or `PAPER`, the name of its CLIP.
        classes: to choose from.
        width: of its features.
    """
    generator = torch.Generator().manual_seed(0)
    untrained = Student.untrained(_towers(model), feature_width=width).eval()
    vectors = normalize(torch.randn(classes, width, generator=generator), dim=-1)
    names = [f"class {label}" for label in range(classes)]
    return PortableStudent(fold(untrained, vectors), {"names": names, "model": model})


def _towers(model: str) -> ClipTowers:
    if model == EMBEDDED:
        return load_clip(model, None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = open_clip.create_model(model, pretrained=None)
    return clip.freeze(model, made, open_clip.get_tokenizer(model))
