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

_TOLERANCE = 1e-5  # of unit features; the same operations differ by rounding alone


def fold(student: Student, vectors: Tensor) -> Network:
    """Make one network of a student's tower, prompts and projector, and class vectors.

    Args:
        student: in evaluation mode.
        vectors: (C, D), unit length.

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
    """Refuse a tower with parts that the network lacks, such as layer scales."""
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


class Predictor:
    """A student ready to classify; what a user can put right is a `PdError`.

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
            MissingFile: the path leads nowhere.
            BadData: it is not a readable picture.
            BadParams: `top` is not positive.
        """
        return self.classify_many([picture], top=top)[0]

    def classify_many(
        self, pictures: Sequence[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[Ranking]:
        """Classify images; see `classify`, whose errors it has."""
        if top < 1:
            raise BadParams(f"top = {top}; ask for at least one name")
        for picture in pictures:
            if isinstance(picture, Path) and not picture.is_file():
                raise missing("picture", picture, "check the path")
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
        vectors: class vectors, if they are neither in the folder nor at
            `class_vectors/<data set>` beside its parent.
        weights: of the student's CLIP, if they do not ship with the package.
        device: where to compute.

    Raises:
        MissingFile: a file is not there.
        BadArtifact: a file does not hold what it should.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).is_file():
        return Predictor(load_bundle(folder, device=device))
    found = Path(vectors) if vectors else _vectors_beside(folder)
    remedy = f"run `dvc repro student@{folder.name}`, or give another folder"
    return Predictor(
        stand_alone(folder / STUDENT_FILE, found, weights, device=device, remedy=remedy)
    )


def load_bundle(folder: Path, *, device: str = "cpu") -> PortableStudent:
    """Load a student from a bundle.

    Raises:
        BadArtifact: a file is missing, or does not hold what it should.
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
        student: the `student` stage's safetensors file.
        vectors: the class vectors that it was trained on.
        weights: of the student's CLIP; None if they ship with the package.
        device: where to compute.
        remedy: for the error if there is no student.

    Raises:
        MissingFile: a file is not there.
        BadArtifact: they do not fit together.
    """
    _, metadata = read_tensors(student, what="student", remedy=remedy)
    towers = load_clip(metadata.get("model", ""), weights, device=device)
    trained = Student.load(student, towers, remedy=remedy)
    known = for_student(trained, ClassVectors.load(vectors))
    width, wanted = known.vectors.shape[1], int(metadata["feature_width"])
    if width != wanted:
        raise BadArtifact(
            f"class vectors '{vectors}' are {width} wide, the student's features {wanted}; give "
            f"those that it was distilled with"
        )
    network = fold(trained, known.vectors).to(device)
    info = {
        "names": known.names,
        "model": towers.name,
        "vectors": known.source,
        "text_features": str(trained.text_features),
    }
    return PortableStudent(network, info)


def _vectors_beside(folder: Path) -> Path:
    inside = folder / VECTORS_FILE
    if inside.is_file():
        return inside
    return folder.parent.parent / "class_vectors" / folder.name / VECTORS_FILE
