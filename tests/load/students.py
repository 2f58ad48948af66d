"""Students to serve: the embedded one, and one as large as the paper's, with random weights."""

from __future__ import annotations
from pathlib import Path
from typing import Any, NamedTuple
import numpy as np
import torch
from numpy.typing import NDArray
from pd_core.predictor import Predictor, load_student, decode
from pd_core.data.transforms import normalised
from pd_core.errors import BadData


class Answers(NamedTuple):
    probabilities: NDArray[Any]
    features: NDArray[Any]


class StandIn:
    def __init__(self, p: Predictor, size: int) -> None:
        self.p = p
        self.names = p.names
        self.image_size = size
        self.info = {"model": "x"}

    def crop(self, picture: bytes, *, most_pixels: int = 100_000_000):
        try:
            return np.asarray(self.p._transform.crop(decode(picture)))
        except BadData as e:
            raise ValueError(str(e)) from None

    @torch.inference_mode()
    def answers(self, pixels):
        f = self.p._student(normalised(pixels))
        logits = self.p._vectors.logits(f, logit_scale=self.p._student.logit_scale)
        return Answers(logits.softmax(dim=-1).numpy(), f.numpy())


def embedded(folder: str) -> StandIn:
    return StandIn(load_student(folder), 32)


def large() -> StandIn:
    import open_clip
    from pd_core.class_vectors import ClassVectors
    from pd_core.models import clip
    from pd_core.models.student import Student

    model = open_clip.create_model("ViT-B-16", pretrained=None)
    towers = clip.freeze("ViT-B-16", model, open_clip.get_tokenizer("ViT-B-16"))
    s = Student.untrained(towers, feature_width=768).eval()
    v = torch.nn.functional.normalize(torch.randn(100, 768), dim=-1)
    return StandIn(
        Predictor(s, ClassVectors(tuple(f"class {i}" for i in range(100)), v, 100.0, "random")), 224
    )
