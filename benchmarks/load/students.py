"""Students with random weights, of the size of the embedded one and of the paper's."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from benchmarks import sizes
from pd_core.mlops.fold import fold
from pd_core.models.clip import load_clip
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

EMBEDDED, PAPER = "embedded-student", sizes.SMALL


def student(model: str, *, classes: int = 48, width: int = 512) -> PortableStudent:
    """Make an untrained student of a CLIP, `EMBEDDED` or `PAPER`."""
    towers = load_clip(model, None) if model == EMBEDDED else sizes.build(model)
    untrained = Student.untrained(towers, feature_width=width).eval()
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(classes, width, generator=generator), dim=-1)
    names = [f"class {label}" for label in range(classes)]
    return PortableStudent(fold(untrained, vectors), {"names": names, "model": model})
