"""Tiny real CLIPs, pictures and data sets for the tests."""

import copy
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from pd_core.core.artifacts import write_sums
from pd_core.data.loading import images as loading
from pd_core.data.loading.images import Batch, Transform
from pd_core.data.loading.prepared import write_prepared
from pd_core.models import clip
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.training.loop.checkpoints import Checkpoints

CONTEXT_LENGTH = 24
NAMES = ("golden_retriever", "maine coon", "tench", "forget-me-not", "Sea or Lake")


CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 32, "heads": 2, "layers": 3},
}


@cache
def towers(
    name: str = "tiny", *, width: int = 32, joint_width: int = 16, seed: int = 0
) -> ClipTowers:
    """Make a CLIP with random weights: 16x16 pictures, three layers in each tower."""
    tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    return clip.freeze(name, model(width=width, joint_width=joint_width, seed=seed), tokenize)


def model(
    *, width: int = 32, joint_width: int = 16, seed: int = 0, image_size: int = 16
) -> open_clip.CustomTextCLIP:
    """Make the open_clip model that `towers` are taken from."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    config["vision_cfg"]["image_size"] = image_size
    config["vision_cfg"]["width"] = config["text_cfg"]["width"] = width
    config["embed_dim"] = joint_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**config)


def biased(tower: Any) -> Any:
    """Copy a tower in fp64 and give it random biases, which are zero in a new one.

    Without rounding and zeros, no mistake can hide.
    """
    exact = copy.deepcopy(tower).double()
    generator = torch.Generator().manual_seed(7)
    for name, value in exact.named_parameters():
        if name.endswith("bias"):
            value.data = torch.randn(value.shape, generator=generator, dtype=value.dtype) / 4
    return exact


@cache
def register() -> None:
    """Register the tiny CLIP with open_clip: "tiny", "tiny-quickgelu", "tiny-24" of 24 pixels."""
    larger = {"vision_cfg": {**CONFIG["vision_cfg"], "image_size": 24}}
    kinds: dict[str, dict[str, Any]] = {
        "tiny": {},
        "tiny-quickgelu": {"quick_gelu": True},
        "tiny-24": larger,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, extra in kinds.items():
            (Path(folder) / f"{name}.json").write_text(json.dumps({**CONFIG, **extra}))
        open_clip.add_model_config(Path(folder))


def weights(folder: Path, *, seed: int = 0, image_size: int = 16) -> Path:
    """Store the weights of the tiny CLIP."""
    register()
    path = folder / f"tiny-{seed}.safetensors"
    path.write_bytes(_weights(seed, image_size))
    return path


@cache
def _weights(seed: int, image_size: int) -> bytes:
    return save(model(seed=seed, image_size=image_size).state_dict())


@cache
def loaded(name: str, weights: Path, device: str = "cpu") -> ClipTowers:
    """Load a CLIP as `load_clip` does, each file once."""
    return clip.load_clip(name, Path(weights), device=device)


def agreed(*_: Any, **__: Any) -> None:
    """Accept a student that learns next to nothing in the few steps of a test."""


TRAININGS = ("training.teacher.stage", "training.teacher.class_vectors", "training.student.stage")


@contextmanager
def quick_stages(*modules: str) -> Iterator[None]:
    """Read each file of weights once in these modules; undo what they set in torch."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(f"pd_core.{module}.load_clip", loaded)
        patch.setattr("pd_core.training.student.stage.check_agreement", agreed)
        with torch_restored():
            yield


@contextmanager
def torch_restored() -> Iterator[None]:
    """Undo what the stages set in torch's global state."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)


def images(count: int, *, seed: int = 0, side: int = 16) -> Tensor:
    """Make random images (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def view(transform: Transform, image: Image.Image, *, seed: int, epoch: int, index: int) -> Tensor:
    """Return the view of an image alone: (3, H, W)."""
    with loading._seeded_views() as reseed:
        reseed(loading._hash(seed, epoch, index))
        return transform(image)


class Batches:
    """The same few images in every epoch, in another order each time."""

    def __init__(self, count: int, *, size: int, side: int = 16) -> None:
        self._images = images(count, side=side)
        self._size = size
        self.corrupt: set[int] = set()
        self.left_out = 0

    @property
    def steps(self) -> int:
        return len(self._images) // self._size

    def names(self, indices: Sequence[int]) -> list[str]:
        return [f"{index}.png" for index in indices]

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self._images), generator=generator)
        used = order[start * self._size : self.steps * self._size]
        parts = used.split(self._size)  # type: ignore[no-untyped-call]
        for number, chosen in enumerate(parts, start=start):
            images = self._images[chosen]
            yield Batch(chosen, {Preprocess(images.shape[-1]): images}, epoch, number)


def checkpoints(folder: Path, *, key: str = "this run", **rest: Any) -> Checkpoints:
    """Make the checkpoints of a training."""
    return Checkpoints(folder / "checkpoints", key=key, **rest)


def stored_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the numbers of the newest of these checkpoints."""
    checkpoint = checkpoints(folder).latest()
    assert checkpoint is not None
    return checkpoint[0], json.loads(checkpoint[1]["state"])


def prepared(folder: Path, *, per_class: int = 4) -> Path:
    """Write a prepared data set of five classes, three of them base, with real pictures."""
    pictures = folder.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [
        (f"{label}_{number}.png", label)
        for label in range(len(NAMES))
        for number in range(per_class)
    ]
    for path, label in rows:
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8) // 2 + 25 * label
        Image.fromarray(pixels.astype(np.uint8)).save(pictures / path)
    split = {
        "dataset": folder.name,
        "title": "Tiny",
        "classes": list(NAMES),
        "base_classes": 3,
        "protocol": "base_to_novel",
        "shots": per_class,
        "seed": 1,
        "images": str(pictures),
        "few_shot": [row for row in rows if row[1] < 3],
        "few_shot_val": [],
        "val": [],
        "test": rows,
    }
    write_prepared(folder, split, [path for path, _ in rows])
    return folder


def cut_short(archive: Path) -> None:
    """Damage the training pictures in a prepared data set's zip, and sign it anew."""
    with zipfile.ZipFile(archive) as old:
        pictures = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in pictures.items():
            new.writestr(name, content[:40] if name.startswith("train/") else content)
    write_sums(archive.parent)
