"""The student: a small frozen CLIP image tower with prompts, and a projector.

Shapes: B images, D the teacher's joint width, d the student's.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pd_core.artifacts import read_tensors, write_tensors
from pd_core.errors import BadArtifact, BadParams
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import DeepPrompts, encode_image
from pd_core.models.teacher import read_prompts


class Student(nn.Module):
    """A frozen image tower, image prompts, and a projector into the teacher's space.

    It has no text tower of its own at work: it is compared with the teacher's
    class vectors (paper, section 3.3).

    Attributes:
        towers: the frozen CLIP; not a sub-module, so neither trained nor saved.
        image_prompts: of the image tower.
        projector: d -> D -> D with batch norm and ReLU in between.
    """

    def __init__(self, towers: ClipTowers, image_prompts: DeepPrompts, feature_width: int) -> None:
        """Join tower, prompts and an untrained projector.

        The projector takes torch's own initial weights, from its global
        generator; `untrained` seeds that and leaves it as it was.

        Args:
            towers: the small CLIP.
            image_prompts: of its image tower.
            feature_width: D.
        """
        super().__init__()
        self.towers = towers
        self.image_prompts = image_prompts
        self.projector = nn.Sequential(
            nn.Linear(towers.joint_width, feature_width),
            nn.BatchNorm1d(feature_width),
            nn.ReLU(),
            nn.Linear(feature_width, feature_width),
        )
        self.to(towers.device)

    @classmethod
    def untrained(
        cls,
        towers: ClipTowers,
        *,
        feature_width: int,
        depth: int = 9,
        length: int = 4,
        seed: int = 1,
    ) -> Self:
        """Make a student with random prompts and projector, ready to be trained.

        Args:
            towers: the small CLIP.
            feature_width: D, the width of the class vectors.
            depth: layers with prompts; clipped to what the tower has.
            length: prompts per layer.
            seed: of prompts and projector; the global generator is not touched.

        Raises:
            BadParams: depth or length is not positive.
        """
        for name, value in (("depth", depth), ("length", length)):
            if value < 1:
                raise BadParams(f"image prompt {name} = {value}; give a number from 1 upwards")
        generator = torch.Generator().manual_seed(seed)
        prompts = DeepPrompts(
            min(depth, towers.image_layers), length, towers.image_width, generator=generator
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(towers, prompts, feature_width)

    @property
    def logit_scale(self) -> float:
        """What its cosines are multiplied by to become logits: its own CLIP's scale."""
        return self.towers.logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Encode images into the teacher's space: (B, 3, H, W) -> (B, D), unit length, fp32."""
        features = encode_image(self.towers.visual, images, self.image_prompts)  # (B, d)
        projected = self.projector(features.float())  # (B, D)
        return F.normalize(projected.float(), dim=-1)

    def save(self, path: Path) -> None:
        """Write prompts and projector; the tower is named, not stored.

        Raises:
            PdError: the folder cannot be written.
        """
        tensors = {f"projector.{key}": value for key, value in self.projector.state_dict().items()}
        tensors["image.tokens"] = self.image_prompts.tokens
        metadata = {
            "model": self.towers.name,
            "feature_width": str(self.projector[-1].out_features),
            "image_depth": str(self.image_prompts.depth),
            "image_length": str(self.image_prompts.length),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, towers: ClipTowers, *, remedy: str = "distil one first") -> Self:
        """Read prompts and projector and join them to the tower, in evaluation mode.

        Args:
            path: written by `save`.
            towers: the CLIP that the student was trained on.
            remedy: what to do when there is no such file.

        Raises:
            MissingFile: there is no such file.
            BadArtifact: it belongs to another model, or its sizes do not fit.
        """
        tensors, metadata = read_tensors(path, what="student", remedy=remedy)
        if metadata.get("model") != towers.name:
            raise BadArtifact(
                f"student '{path}' was trained on model '{metadata.get('model')}', not on"
                f" '{towers.name}'; set the model back or distil the student again"
            )
        prompts = read_prompts(
            path, tensors, metadata, "image", width=towers.image_width, layers=towers.image_layers
        )
        if prompts is None:
            raise BadArtifact(f"student '{path}' holds no image prompts; distil it again")
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
            student = cls(towers, prompts, int(metadata["feature_width"]))
        weights = {
            key.removeprefix("projector."): value
            for key, value in tensors.items()
            if key.startswith("projector.")
        }
        try:
            student.projector.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise BadArtifact(f"student '{path}' does not fit: {reason}") from None
        return student.eval()
