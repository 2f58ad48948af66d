"""The teacher: a large frozen CLIP with tuned prompts in both towers.

Shapes: B images, C classes, L tokens, D the joint width, W a tower's width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pd_core.core.artifacts import check_numbers, read_tensors, understood, write_tensors
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.core.options import TeacherMethod
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import (
    CoupledPrompts,
    DeepPrompts,
    ImagePrompts,
    encode_image,
    encode_text,
    encode_texts,
)
from pd_core.models.text_batching import TextPlan, cut_after_end

TEMPLATE = "a photo of a {}."
CHANGE = "backbone."  # before the keys of weights that an artifact brings along


class Teacher(nn.Module):
    """A frozen CLIP and, if it was tuned, its prompts; only the prompts are its parameters.

    Attributes:
        towers: the frozen CLIP; not a sub-module, so neither trained nor saved.
        text_prompts: of the text tower, or None.
        image_prompts: of the image tower, or None.
        method: how it was tuned.
        template: the text of a class, with `{}` for its name.
    """

    def __init__(
        self,
        towers: ClipTowers,
        text_prompts: DeepPrompts | None = None,
        image_prompts: ImagePrompts | None = None,
        *,
        method: TeacherMethod = TeacherMethod.CLIP,
        template: str = TEMPLATE,
    ) -> None:
        """Join towers and prompts; without prompts this is the zero-shot model."""
        super().__init__()
        self.towers = towers
        self.text_prompts = text_prompts
        self.image_prompts = image_prompts
        self.method = method
        self.template = template
        self.to(towers.device)

    @classmethod
    def untrained(
        cls,
        towers: ClipTowers,
        *,
        method: TeacherMethod = TeacherMethod.PROMPTSRC,
        text_depth: int = 9,
        text_length: int = 4,
        image_depth: int = 9,
        image_length: int = 4,
        template: str = TEMPLATE,
        seed: int = 1,
    ) -> Self:
        """Make a teacher with fresh prompts, ready to be tuned.

        The first text prompts start as the words before the class name, if
        there are at least `text_length` of them; all others are random.
        PromptSRC and IVLP have prompts of their own in both towers. MaPLe's
        image prompts follow the text prompts, so `image_depth` and
        `image_length` say nothing there. CoOp only has the first row of text
        prompts.

        Args:
            towers: the frozen CLIP.
            method: which prompts there are.
            text_depth: layers of the text tower with prompts; clipped to what it has.
            text_length: prompts per layer of the text tower.
            image_depth: layers of the image tower with prompts; clipped likewise.
            image_length: prompts per layer of the image tower.
            template: the text of a class, with `{}` for its name.
            seed: of the random prompts.

        Raises:
            BadParams: a depth or length is not positive, or the text prompts
                leave no room for a class name.
        """
        for name, value in {
            "text prompt depth": text_depth,
            "text prompt length": text_length,
            "image prompt depth": image_depth,
            "image prompt length": image_length,
        }.items():
            if value < 1:
                raise BadParams(f"{name} = {value}; give a number from 1 upwards")
        generator = torch.Generator().manual_seed(seed)
        text = DeepPrompts(
            1 if method is TeacherMethod.COOP else min(text_depth, towers.text_layers),
            text_length,
            towers.text_width,
            generator=generator,
        )
        image: ImagePrompts | None
        match method:
            case TeacherMethod.PROMPTSRC | TeacherMethod.IVLP:
                depth = min(image_depth, towers.image_layers)
                image = DeepPrompts(depth, image_length, towers.image_width, generator=generator)
            case TeacherMethod.MAPLE:
                depth = min(text.depth, towers.image_layers)
                image = CoupledPrompts(text, towers.image_width, depth=depth, generator=generator)
            case TeacherMethod.COOP:
                image = None
            case TeacherMethod.CLIP:
                raise BadParams(
                    "teacher method 'clip' has no prompts to tune; use another method, or the"
                    " zero-shot teacher"
                )
        phrase = _phrase_tokens(towers, template)  # (p,)
        if text_length <= len(phrase):
            words = towers.text.token_embedding(phrase[:text_length].to(towers.device))
            text.tokens.data[0] = words.detach().float().cpu()
        return cls(towers, text, image, method=method, template=template)

    @property
    def logit_scale(self) -> float:
        """What its cosines are multiplied by to become logits."""
        return self.towers.logit_scale

    @property
    def text_length(self) -> int:
        """Number of text prompts per layer; 0 without any."""
        return 0 if self.text_prompts is None else self.text_prompts.length

    def texts(self, names: Sequence[str]) -> list[str]:
        """Write the text of each class.

        If there are more prompts than words before the class name, placeholders
        hold their places instead of the words. Underscores become spaces.
        """
        template, length = self.template, self.text_length
        if length > len(_phrase_tokens(self.towers, template)):
            _, _, after = template.partition("{}")
            template = " ".join(["X"] * length) + " {}" + after
        return [template.replace("{}", name.replace("_", " ")) for name in names]

    def tokens(self, names: Sequence[str]) -> Tensor:
        """Tokenize the text of each class, cut behind the longest one: (C, L') token ids.

        Raises:
            BadParams: the prompts take all positions.
        """
        tokens = cut_after_end(self.towers.tokenize(self.texts(names)))
        if self.text_length + 2 >= self.towers.context_length:
            raise BadParams(
                f"text prompt length = {self.text_length} leaves no room for class names in"
                f" {self.towers.context_length} positions; use a shorter prompt"
            )
        return tokens.to(self.towers.device)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images with the prompts: (B, 3, H, W) -> (B, D), unit length, fp32."""
        return _unit(encode_image(self.towers.visual, images, self.image_prompts))

    def text_plan(self, names: Sequence[str], *, memory: int | None = None) -> TextPlan:
        """Plan how the text of each class goes through the text tower.

        Args:
            names: C class names.
            memory: bytes that may be kept for the gradients; None for as many as it takes.

        Raises:
            BadParams: as in `tokens`.
        """
        tokens = self.tokens(names)
        return TextPlan.of(self.towers.text, tokens, self.text_length, memory=memory)

    def text_features(self, texts: Tensor | TextPlan) -> Tensor:
        """Encode tokens (C, L), or a plan of C texts: (C, D), of unit length, fp32."""
        tower, prompts = self.towers.text, self.text_prompts
        if isinstance(texts, TextPlan):
            return _unit(encode_texts(tower, texts, prompts))
        return _unit(encode_text(tower, texts, prompts))

    def folded(self) -> "Teacher":
        """Return this teacher with image prompts of its own, whatever computes them now."""
        if not isinstance(self.image_prompts, CoupledPrompts):
            return self
        prompts = self.image_prompts.folded()
        return Teacher(
            self.towers, self.text_prompts, prompts, method=self.method, template=self.template
        ).train(self.training)

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Encode images without prompts: (B, 3, H, W) -> (B, D), unit length, fp32."""
        return _unit(encode_image(self.towers.visual, images))

    def save(self, path: Path) -> None:
        """Write the prompts; the towers are named, and only what is changed in them is stored."""
        branches = (("text", self.text_prompts), ("image", self.folded().image_prompts))
        metadata = {
            "method": str(self.method),
            "model": self.towers.name,
            "template": self.template,
        }
        tensors = {CHANGE + key: value for key, value in self.towers.changes.items()}
        for branch, prompts in branches:
            depth, length = (prompts.depth, prompts.length) if prompts is not None else (0, 0)
            metadata |= {f"{branch}_depth": str(depth), f"{branch}_length": str(length)}
            if prompts is not None:
                tensors[f"{branch}.tokens"] = prompts.tokens
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, towers: ClipTowers, *, remedy: str = "tune a teacher first") -> Self:
        """Read a teacher's prompts and join them to the towers that they were tuned for.

        Raises:
            MissingFile: there is no such file; the message has the remedy.
            BadArtifact: the prompts were tuned for another model, or their
                depth, length or width does not fit.
        """
        tensors, metadata = read_tensors(path, what="teacher", remedy=remedy)
        if metadata.get("model") != towers.name:
            raise BadArtifact(
                f"teacher '{path}' was tuned on model '{metadata.get('model')}', not on"
                f" '{towers.name}'; set the model back or tune the teacher again"
            )
        check_numbers(tensors, path, what="teacher", remedy=remedy)
        text = read_prompts(path, tensors, metadata, "text", towers)
        image = read_prompts(path, tensors, metadata, "image", towers)
        with understood(path, what="teacher", remedy=remedy):
            method, template = TeacherMethod(metadata["method"]), metadata["template"]
        changed = towers.with_changes(read_changes(tensors))
        return cls(changed, text, image, method=method, template=template).eval()


def read_changes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the weights that replace the named model's own out of an artifact."""
    return {key.removeprefix(CHANGE): v for key, v in tensors.items() if key.startswith(CHANGE)}


def read_prompts(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    branch: str,
    towers: ClipTowers,
) -> DeepPrompts | None:
    """Take the prompts of the tower "text" or "image" out of an artifact; None if it holds none.

    Args:
        path: of the artifact, for the message.
        tensors: of the artifact.
        metadata: of the artifact; says which depth and length the tensor must have.
        branch: which tower.
        towers: that the prompts have to fit.

    Raises:
        BadArtifact: the depth, length or width does not fit.
    """
    tokens = tensors.get(f"{branch}.tokens")
    with understood(path, what="prompts in", remedy="make it again"):
        said = [int(metadata.get(f"{branch}_{size}", 0)) for size in ("depth", "length")]
    found = [0, 0] if tokens is None else list(tokens.shape[:2])
    if said != found or (tokens is not None and tokens.dim() != 3):
        raise BadArtifact(
            f"'{path}' says {branch} prompts of depth {said[0]} and length {said[1]} but holds"
            f" depth {found[0]} and length {found[1]}; make it again"
        )
    if tokens is None:
        return None
    depth, length, found_width = tokens.shape
    width, layers = towers.size(branch)
    if found_width != width or depth > layers:
        raise BadArtifact(
            f"'{path}' has {branch} prompts of depth {depth}, length {length} and width"
            f" {found_width}; the tower has {layers} layers of width {width}; make it again"
        )
    return DeepPrompts.of(tokens)


def _phrase_tokens(towers: ClipTowers, template: str) -> Tensor:
    """Tokenize the words before the class name, without start and end: (p,)."""
    phrase, mark, _ = template.partition("{}")
    if not mark:
        raise BadParams(f"prompt template '{template}' has no {{}}; put it where the name goes")
    tokens = towers.tokenize([phrase.strip()])[0]  # (L,)
    return tokens[1 : int(tokens.argmax())]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
