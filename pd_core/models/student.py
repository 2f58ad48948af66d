"""Student: a small frozen CLIP image tower with prompts, and a projector.

Shapes: B images, D the teacher's joint width, d the student's.
"""

import copy
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pd_core.core.artifacts import understood, write_tensors
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import Selection, TextFeatures, Trained
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.network import projector
from pd_core.models.prompts import DeepPrompts, encode_image
from pd_core.models.teacher import CHANGE, read_changes, read_model, read_prompts
from pd_core.models.towers import trained_parts

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


class Student(nn.Module):
    """A small image tower, image prompts, and a projector into the teacher's space.

    It is classified by the teacher's class vectors (paper, section 3.3) unless `text_features`
    selects its own text tower.

    Attributes:
        towers: the frozen CLIP; no sub-module, so neither trained nor saved.
        image_prompts: of the image tower, or None.
        projector: d -> D, one to three linear layers with batch norm and ReLU in between.
        tower: a copy of the image tower that is trained, wholly or its normalisations, or None.
        text_features: source of its class vectors.
        selection: of its epoch.
    """

    def __init__(
        self,
        towers: ClipTowers,
        image_prompts: DeepPrompts | None,
        feature_width: int,
        *,
        layers: int = 2,
        tower: nn.Module | None = None,
        text_features: TextFeatures = TextFeatures.TEACHER,
        selection: Selection = Selection.LAST,
    ) -> None:
        """Join tower, prompts and a projector with weights from torch's global generator.

        Args:
            towers: the small CLIP.
            image_prompts: of its image tower, if any.
            feature_width: D.
            layers: of the projector, 1 to 3 (paper, ablation of the projector).
            tower: a copy of the image tower, some of whose parameters are trained.
            text_features: source of its class vectors.
            selection: of its epoch.

        Raises:
            BadParams: the number of layers is not 1 to 3.
        """
        super().__init__()
        if not 1 <= layers <= 3:
            raise BadParams(f"projector_layers = {layers}; give 1, 2 or 3")
        self.towers = towers
        self.image_prompts = image_prompts
        self.projector = projector(towers.joint_width, feature_width, layers)
        self.tower: Any = tower
        self.text_features = text_features
        self.selection = selection
        self.to(towers.device)

    @classmethod
    def untrained(
        cls,
        towers: ClipTowers,
        *,
        feature_width: int,
        depth: int = 9,
        length: int = 4,
        layers: int = 2,
        trained: Trained = Trained.PROMPTS_AND_PROJECTOR,
        text_features: TextFeatures = TextFeatures.TEACHER,
        seed: int = 1,
    ) -> Self:
        """Make a student with random prompts and projector.

        Args:
            towers: the small CLIP.
            feature_width: D, the width of the class vectors.
            depth: layers with prompts; at most all of the tower.
            length: prompts per layer.
            layers: of the projector, 1 to 3.
            trained: trained parts; only the first choice has prompts.
            text_features: source of its class vectors.
            seed: of prompts and projector; the global generator is not changed.

        Raises:
            BadParams: depth or length is not positive, the number of layers is not 1 to 3, or the
                tower cannot have prompts.
        """
        parts = trained_parts(towers.visual)
        if trained not in parts:
            raise BadParams(
                f"model '{towers.name}' cannot have prompts, as its image tower is no transformer"
                f" that they can enter; set student.trained to one of {', '.join(parts)}"
            )
        for name, value in (("depth", depth), ("length", length)):
            if value < 1:
                raise BadParams(f"image prompt {name} = {value}; give a number from 1 upwards")
        generator = torch.Generator().manual_seed(seed)
        prompts = None
        if trained is Trained.PROMPTS_AND_PROJECTOR:
            prompts = DeepPrompts(
                min(depth, towers.image_layers), length, towers.image_width, generator=generator
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(
                towers,
                prompts,
                feature_width,
                layers=layers,
                tower=_trained_tower(towers, trained),
                text_features=text_features,
            )

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  as in torch
        """Set the mode of projector and prompts; the tower's batch norms keep their statistics."""
        super().train(mode)
        if self.tower is not None:
            self.tower.eval()
        return self

    @property
    def logit_scale(self) -> float:
        """Factor from cosine similarities to logits, that of the small CLIP."""
        return self.towers.logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Encode images into the teacher's space: (B, 3, H, W) -> (B, D), unit length, fp32."""
        return self.project(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images by the tower: (B, 3, H, W) -> (B, d), fp32."""
        tower = self.towers.visual if self.tower is None else self.tower
        return encode_image(tower, images, self.image_prompts).float()

    def project(self, features: Tensor) -> Tensor:
        """Project features into the teacher's space: (B, d) -> (B, D), unit length, fp32.

        In training B is a whole batch, since batch norm depends on all of its images.
        """
        projected = self.projector(features)  # (B, D)
        return F.normalize(projected.float(), dim=-1)

    def save(self, path: Path) -> None:
        """Write prompts, projector, the model's name, and changed weights of its towers."""
        tensors = {f"projector.{key}": value for key, value in self.projector.state_dict().items()}
        changes = dict(self.towers.changes)
        if self.tower is not None:
            trained = dict(self.tower.named_parameters())
            changes |= {f"visual.{key}": v for key, v in trained.items() if v.requires_grad}
        tensors |= {CHANGE + key: value for key, value in changes.items()}
        metadata = {
            **self.towers.origin,
            "feature_width": str(self.projector[-1].out_features),
            "projector_layers": str(sum(isinstance(part, nn.Linear) for part in self.projector)),
            "text_features": str(self.text_features),
            "selection": str(self.selection),
        }
        if self.image_prompts is not None:
            tensors["image.tokens"] = self.image_prompts.tokens
            metadata["image_depth"] = str(self.image_prompts.depth)
            metadata["image_length"] = str(self.image_prompts.length)
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, towers: ClipTowers, *, remedy: str = "distil one first") -> Self:
        """Read prompts and projector and join them to the tower that they were trained on.

        Raises:
            MissingFile: the file does not exist.
            BadArtifact: it belongs to another model, or its sizes do not fit.
        """
        tensors, metadata = read_model(path, towers, what="student", remedy=remedy)
        prompts = read_prompts(path, tensors, metadata, "image", towers)
        weights = {
            key.removeprefix("projector."): value
            for key, value in tensors.items()
            if key.startswith("projector.")
        }
        with understood(path, what="student", remedy=remedy):
            width, layers = int(metadata["feature_width"]), int(metadata["projector_layers"])
            text_features = TextFeatures(metadata["text_features"])
            selection = Selection(metadata["selection"])
            if (width,) not in [value.shape for value in weights.values()]:
                raise ValueError(f"feature_width {width}, which is not that of its projector")
        with torch.random.fork_rng(devices=[]):  # its random weights are replaced below
            student = cls(
                towers.with_changes(read_changes(tensors)),
                prompts,
                width,
                layers=layers,
                text_features=text_features,
                selection=selection,
            )
        try:
            student.projector.load_state_dict(weights)
        except RuntimeError as error:
            raise BadArtifact(f"student '{path}' does not fit: {str(error)[:300]}") from None
        return student.eval()


def _trained_tower(towers: ClipTowers, trained: Trained) -> nn.Module | None:
    """Copy the image tower, if some of its parameters are trained."""
    if trained not in {Trained.FULL_FINETUNE, Trained.NORM_AND_PROJECTOR}:
        return None
    tower: nn.Module = copy.deepcopy(towers.visual).float()
    tower.requires_grad_(requires_grad=trained is Trained.FULL_FINETUNE)
    for module in tower.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(requires_grad=True)
    return tower
