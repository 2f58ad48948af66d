"""Teacher: a frozen CLIP with tuned prompts in both towers.

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
from pd_core.models.class_texts import (
    TEMPLATE,
    Frame,
    check_distinct,
    class_texts,
    phrase_tokens,
)
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
from pd_core.models.towers import is_plain_text, teacher_methods

CHANGE = "backbone."  # prefix of changed weights of the towers in artifacts


class Teacher(nn.Module):
    """A frozen CLIP with prompts, which are the module's only parameters.

    Attributes:
        towers: the frozen CLIP; no sub-module, so neither trained nor saved.
        text_prompts: of the text tower, or None.
        image_prompts: of the image tower, or None.
        method: of the tuning.
        template: text of a class, with `{}` for its name.
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
        """Join towers and prompts; without prompts the teacher is zero-shot."""
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
        """Make a teacher with initial prompts.

        The first row of text prompts starts as the words before the class name if there are at
        least `text_length` of them; all others are random. PromptSRC and IVLP have independent
        prompts in both towers. MaPLe computes image prompts from text prompts, so it ignores
        `image_depth` and `image_length`. CoOp has the first row of text prompts only.

        Args:
            towers: the frozen CLIP.
            method: of the tuning.
            text_depth: layers of the text tower with prompts; at most all of them.
            text_length: prompts per layer of the text tower.
            image_depth: layers of the image tower with prompts; at most all of them.
            image_length: prompts per layer of the image tower.
            template: text of a class, with `{}` for its name.
            seed: of the random prompts.

        Raises:
            BadParams: a depth or length is not positive, or the method has no prompts or cannot be
                used with this model.
        """
        _check_method(towers, method)
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
            first=Frame.of(towers.tokenize).start,
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
                raise BadParams("teacher method 'clip' has no prompts to tune; use another method")
        phrase = phrase_tokens(towers.tokenize, template)  # (p,)
        if text_length <= len(phrase):
            words = towers.text.token_embedding(phrase[:text_length].to(towers.device))
            text.tokens.data[0] = words.detach().float().cpu()
        return cls(towers, text, image, method=method, template=template)

    @property
    def logit_scale(self) -> float:
        """Factor from cosine similarities to logits."""
        return self.towers.logit_scale

    @property
    def text_length(self) -> int:
        """Number of text prompts per layer."""
        return 0 if self.text_prompts is None else self.text_prompts.length

    def texts(self, names: Sequence[str]) -> list[str]:
        """Return the text of each class; underscores become spaces.

        Placeholders replace the words before the class name if there are more prompts than words.
        """
        return class_texts(
            names, self.template, self.towers.tokenize, prompt_length=self.text_length
        )

    def tokens(self, names: Sequence[str]) -> Tensor:
        """Tokenize the text of each class, truncated after the longest one: (C, L').

        Raises:
            BadParams: the prompts leave no position for a class name, or two classes have the same
                tokens.
        """
        tokens = self.towers.tokenize(self.texts(names))
        if self.text_length + 2 >= self.towers.context_length:
            raise BadParams(
                f"text prompt length = {self.text_length} leaves no room for class names in"
                f" {self.towers.context_length} positions; use a shorter prompt"
            )
        check_distinct(names, tokens, self.towers.name, self.towers.tokenize)
        if is_plain_text(self.towers.text):
            tokens = cut_after_end(tokens)
        return tokens.to(self.towers.device)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images with the prompts: (B, 3, H, W) -> (B, D), unit length, fp32."""
        return _unit(encode_image(self.towers.visual, images, self.image_prompts))

    def text_plan(self, names: Sequence[str], *, memory: int | None = None) -> TextPlan:
        """Divide the texts of the classes into batches, see `TextPlan.of`; raises as `tokens`."""
        tokens = self.tokens(names)
        return TextPlan.of(self.towers.text, tokens, self.text_length, memory=memory)

    def text_features(self, texts: Tensor | TextPlan) -> Tensor:
        """Encode tokens (C, L) or a plan of C texts: (C, D), unit length, fp32."""
        tower, prompts = self.towers.text, self.text_prompts
        if isinstance(texts, TextPlan):
            return _unit(encode_texts(tower, texts, prompts))
        return _unit(encode_text(tower, texts, prompts))

    def folded(self) -> "Teacher":
        """Return the teacher with independent image prompts of the same values."""
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
        """Write the prompts, the model's name, and changed weights of its towers."""
        branches = (("text", self.text_prompts), ("image", self.folded().image_prompts))
        metadata = {
            "method": str(self.method),
            **self.towers.origin,
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
        """Read a teacher's prompts and join them to the towers that they were tuned on.

        Raises:
            MissingFile: the file does not exist.
            BadArtifact: it belongs to another model, or the prompts' sizes do not fit.
        """
        tensors, metadata = read_model(path, towers, what="teacher", remedy=remedy)
        text = read_prompts(path, tensors, metadata, "text", towers)
        image = read_prompts(path, tensors, metadata, "image", towers)
        with understood(path, what="teacher", remedy=remedy):
            method, template = TeacherMethod(metadata["method"]), metadata["template"]
        changed = towers.with_changes(read_changes(tensors))
        return cls(changed, text, image, method=method, template=template).eval()


def read_model(
    path: Path, towers: ClipTowers, *, what: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a teacher or student; BadArtifact if its towers are others."""
    tensors, metadata = read_tensors(path, what=what, remedy=remedy)
    origin = {key: metadata[key] for key in ("model", "preprocess") if key in metadata}
    if origin != towers.origin:
        name, own = metadata.get("model"), towers.name
        difference = f"model '{name}', not on '{own}'"
        if name == own:
            difference = f"'{own}' with images of other preprocessing"
        raise BadArtifact(
            f"{what} '{path}' was trained on {difference}; set model and weights back, or train"
            f" the {what} again"
        )
    check_numbers(tensors, path, what=what, remedy=remedy)
    return tensors, metadata


def read_changes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the changed weights of the towers from an artifact's tensors."""
    return {key.removeprefix(CHANGE): v for key, v in tensors.items() if key.startswith(CHANGE)}


def read_prompts(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    branch: str,
    towers: ClipTowers,
) -> DeepPrompts | None:
    """Make the prompts of the tower "text" or "image" from an artifact, or None if it has none.

    Raises:
        BadArtifact: depth, length or width does not match the metadata or the tower.
    """
    tokens = tensors.get(f"{branch}.tokens")
    with understood(path, what="prompts in", remedy="make it again"):
        expected = [int(metadata.get(f"{branch}_{size}", 0)) for size in ("depth", "length")]
    actual = [0, 0] if tokens is None else list(tokens.shape[:2])
    if expected != actual or (tokens is not None and tokens.dim() != 3):
        raise BadArtifact(
            f"'{path}' has {branch} prompts of depth and length {actual}, but its metadata has"
            f" {expected}; make it again"
        )
    if tokens is None:
        return None
    width, layers = towers.size(branch)
    if tokens.shape[2] != width or tokens.shape[0] > layers:
        raise BadArtifact(
            f"'{path}' has {branch} prompts (depth, length, width) of {list(tokens.shape)}; the"
            f" tower has {layers} layers of width {width}; make it again"
        )
    return DeepPrompts.of(tokens, first=Frame.of(towers.tokenize).start)


def _check_method(towers: ClipTowers, method: TeacherMethod) -> None:
    """Refuse a method whose prompts the model cannot have, BadParams."""
    methods = teacher_methods(towers.visual, towers.text)
    if method not in methods:
        tower = "image" if TeacherMethod.COOP in methods else "text"
        raise BadParams(
            f"model '{towers.name}' cannot be tuned by '{method}', as its {tower} tower is no"
            f" transformer that prompts can enter; set teacher.method to {' or '.join(methods)}"
        )


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
