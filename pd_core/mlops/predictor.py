"""Classify images with a distilled student, folded with its class vectors into one network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pd_core.core.artifacts import read_tensors
from pd_core.core.errors import BadArtifact, BadData, BadParams, missing
from pd_core.models.class_vectors import FILE as VECTORS_FILE
from pd_core.models.class_vectors import ClassVectors, for_student
from pd_core.models.clip import load_clip
from pd_core.models.portable.network import ACTIVATIONS, Network, Sizes
from pd_core.models.portable.pictures import BadPicture, Picture
from pd_core.models.portable.student import DESCRIPTION, PortableStudent, Ranking
from pd_core.models.student import Student

STUDENT_FILE = "student.safetensors"

_TOLERANCE = 1e-5  # between features of unit length, for rounding


def fold(student: Student, vectors: Tensor) -> Network:
    """Fold a student (in evaluation mode) and class vectors (C, D; unit length) into one network.

    Returns:
        The network, in fp32 on the CPU, with the student's output.

    Raises:
        BadArtifact: the tower has parts that the network lacks.
    """
    tower = student.towers.visual if student.tower is None else student.tower
    network = Network(_sizes(student, tower, len(vectors)), student.towers.preprocess)
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
def _check(student: Student, network: Network) -> None:
    """Refuse a tower with parts that the network lacks, such as layer scales."""
    size = network.sizes.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = student(images.to(student.towers.device)).cpu()
    error = float((network.features(images) - expected).abs().max())
    half = student.towers.visual.conv1.weight.dtype != torch.float32
    if not error < (1e-2 if half else _TOLERANCE):
        raise BadArtifact(
            f"model '{student.towers.name}' cannot stand alone: its features differ by "
            f"{error:.1e}; give a CLIP with a plain vision transformer"
        )


class Predictor:
    """Student that classifies images; errors that users can correct are `PdError`s.

    Attributes:
        names: C class names, by label.
        student: the network and its description.
    """

    def __init__(self, student: PortableStudent) -> None:
        """Wrap a student."""
        self.names = student.names
        self.student = student

    def classify(self, picture: Picture, *, top: int = 5) -> Ranking:
        """Classify an image; see `PortableStudent.classify`.

        Raises:
            MissingFile: the path does not exist.
            BadData: the image is not readable.
            BadParams: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Classify images in batches; errors as of `classify`."""
        if top < 1:
            raise BadParams(f"top = {top}; ask for at least one name")
        for picture in pictures:
            if isinstance(picture, Path) and not picture.is_file():
                raise missing("image", picture, "check the path")
        try:
            return self.student.classify_many(pictures, top=top, batch_size=batch_size)
        except BadPicture as error:
            raise BadData(str(error)) from None


def load_student(
    folder: Path | str,
    *,
    vectors: Path | str | None = None,
    weights: Path | str | None = None,
    device: str = "cpu",
) -> Predictor:
    """Load a student from a bundle or from the `student` stage's output to classify images.

    Args:
        folder: a bundle, or `data/student/<data set>`.
        vectors: file of class vectors, if they are neither in the folder nor at
            `class_vectors/<data set>` beside its parent.
        weights: weights of the student's CLIP, if they do not ship with the package.
        device: a device of torch.

    Raises:
        MissingFile: a file is missing.
        BadArtifact: a file has other contents.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).is_file():
        return Predictor(load_bundle(folder, device=device))
    file = Path(vectors) if vectors else folder / VECTORS_FILE
    if not vectors and not file.is_file():
        file = folder.parent.parent / "class_vectors" / folder.name / VECTORS_FILE
    remedy = f"run `dvc repro student@{folder.name}`, or give another folder"
    return Predictor(
        stand_alone(folder / STUDENT_FILE, file, weights, device=device, remedy=remedy)
    )


def load_bundle(folder: Path, *, device: str = "cpu") -> PortableStudent:
    """Load a student from a bundle.

    Raises:
        BadArtifact: a file is missing, or has other contents.
    """
    try:
        return PortableStudent.load(folder, device=device)
    except Exception as error:  # JSON, safetensors and torch raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise BadArtifact(
            f"'{folder}' holds no student ({reason}); fetch or register it again"
        ) from None


def stand_alone(
    student: Path,
    vectors: Path,
    weights: Path | str | None = None,
    *,
    device: str = "cpu",
    remedy: str = "run the student stage",
) -> PortableStudent:
    """Fold the stages' outputs into one student that needs no other file.

    Args:
        student: safetensors file of the `student` stage.
        vectors: file of the class vectors that it was trained with.
        weights: weights of the student's CLIP; None if they ship with the package.
        device: a device of torch.
        remedy: ends the error if there is no student.

    Raises:
        MissingFile: a file is missing.
        BadArtifact: the files do not fit together.
    """
    _, metadata = read_tensors(student, what="student", remedy=remedy)
    towers = load_clip(metadata.get("model", ""), weights, device=device)
    trained = Student.load(student, towers, remedy=remedy)
    classes = for_student(trained, ClassVectors.load(vectors))
    width, expected = classes.vectors.shape[1], int(metadata["feature_width"])
    if width != expected:
        raise BadArtifact(
            f"class vectors '{vectors}' are {width} wide, the student's features {expected}; give "
            f"those that it was distilled with"
        )
    network = fold(trained, classes.vectors).to(device)
    info = {
        "names": classes.names,
        "model": towers.name,
        "vectors": classes.source,
        "text_features": str(trained.text_features),
    }
    return PortableStudent(network, info)
