"""Small students that can be exported within a second or two."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from pd_core.data.loading.prepared import read_prepared
from pd_core.models.portable.network import Network, Sizes
from pd_core.models.portable.student import PortableStudent

SIDE = 16


def network(classes: int, *, seed: int = 0) -> Network:
    """Make a vision transformer of two blocks, with prompts and random weights."""
    sizes = Sizes(
        joint_width=64, feature_width=32, projector_layers=2, classes=classes, image_size=SIDE,
        patch_size=8, width=128, layers=2, heads=2, hidden=512, activation="quick_gelu",
        prompt_depth=2, prompt_length=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        made = Network(sizes)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) / 12)
        made.class_vectors.copy_(normalize(made.class_vectors, dim=-1))
        made.logit_scale.fill_(5)
    return made.eval()


def student(names: Sequence[str], *, seed: int = 0) -> PortableStudent:
    """Make a student with random class vectors."""
    info = {"names": tuple(names), "model": "tiny", "vectors": "random"}
    return PortableStudent(network(len(names), seed=seed), info)


def taught_student(prepared: Path) -> PortableStudent:
    """Make a student whose class vectors are the mean features of each class's test images."""
    split = read_prepared(prepared)
    made = student(split.classes)
    crops = np.stack([made.crop(Image.open(split.images / path)) for path, _ in split.test])
    labels = torch.tensor([label for _, label in split.test])
    features = torch.from_numpy(made.answers(crops).features)
    means = torch.stack([features[labels == label].mean(0) for label in range(len(split.classes))])
    made.network.class_vectors.data = normalize(means - features.mean(0), dim=-1)
    return made


def pixels(count: int, *, seed: int = 1) -> NDArray[np.uint8]:
    """Make random images."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
