"""Frozen CLIP models from open_clip, files, or this package.

Shapes: B images, C texts, L tokens, D the joint width, W the width of a tower.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pd_core.core.artifacts import SUMS, check_sum
from pd_core.core.errors import BadArtifact, BadParams, MissingFile, missing, unknown
from pd_core.models import towers as _towers
from pd_core.models.checkpoint_io import read_weights
from pd_core.models.class_texts import Tokenize
from pd_core.models.embedded import EMBEDDED, embedded_tokenizer, embedded_weights, load_embedded
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.preprocessing import preprocess_of_file, preprocess_of_tag

_DECODER = "text_decoder."  # of CoCa
_TEXT_KEYS = (
    "text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final",
)  # fmt: skip


@dataclass(frozen=True)
class ClipTowers:
    """A frozen CLIP in evaluation mode.

    Attributes:
        name: the model's name, stored in artifacts.
        visual: image tower of open_clip; (B, 3, H, W) -> (B, D).
        text: text tower of open_clip; (C, L) -> (C, D).
        logit_scale: factor from cosine similarities to logits (after the exponential). The bias
            of SigLIP's logits is left out: it is the same for all classes, so no softmax has it.
        tokenize: C strings -> (C, L) token ids.
        preprocess: of the images.
        context_length: L.
        changes: weights that differ from the named model's, by the keys of `weights`; stored in
            artifacts.
    """

    name: str
    visual: Any
    text: Any
    logit_scale: float
    tokenize: Tokenize
    preprocess: Preprocess
    context_length: int
    changes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, str]:
        """Model and, unless it is that of OpenAI's CLIPs, preprocessing; stored in artifacts."""
        if self.preprocess == Preprocess(self.image_size):
            return {"model": self.name}
        return {"model": self.name, "preprocess": json.dumps(asdict(self.preprocess))}

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        return self.preprocess.size

    @property
    def device(self) -> torch.device:
        """Device of the towers."""
        return _towers.device(self.visual)

    @cached_property
    def joint_width(self) -> int:
        """Width D of the features of both towers."""
        return _towers.joint_width(self.visual)

    @property
    def image_width(self) -> int:
        """Width W of the image tower; 0 without blocks."""
        return _towers.width(self.visual)

    @property
    def text_width(self) -> int:
        """Width W of the text tower; 0 without blocks."""
        return _towers.width(self.text)

    @property
    def image_layers(self) -> int:
        """Number of blocks of the image tower that prompts can enter."""
        return len(_towers.blocks(self.visual))

    @property
    def text_layers(self) -> int:
        """Number of blocks of the text tower that prompts can enter."""
        return len(_towers.blocks(self.text))

    def size(self, branch: str) -> tuple[int, int]:
        """Return W and the number of blocks of the tower "text" or "image"."""
        if branch == "text":
            return self.text_width, self.text_layers
        return self.image_width, self.image_layers

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors: `visual.*`, `text.*`, and `logit_scale` before its exponential."""
        towers = {"visual": self.visual.state_dict(), "text": self.text.state_dict()}
        tensors = {
            f"{tower}.{key}": v for tower, state in towers.items() for key, v in state.items()
        }
        return {**tensors, "logit_scale": torch.tensor(self.logit_scale).log()}

    def with_changes(self, changes: Mapping[str, Tensor]) -> Self:
        """Return a copy with some weights replaced, given by the keys of `weights`.

        Raises:
            BadArtifact: a key or a shape does not fit the model.
        """
        if not changes:
            return self
        own = self.weights()
        for key, value in changes.items():
            if key not in own or own[key].shape != value.shape:
                expected = list(own[key].shape) if key in own else "no such tensor"
                raise BadArtifact(
                    f"weights '{key}' of shape {list(value.shape)} do not fit model '{self.name}'"
                    f" ({expected}); use the model that they belong to"
                )
        visual, text = copy.deepcopy(self.visual), copy.deepcopy(self.text)
        for name, tower in (("visual", visual), ("text", text)):
            start = f"{name}."
            new = {
                key.removeprefix(start): changes[key] for key in changes if key.startswith(start)
            }
            tower.load_state_dict({**tower.state_dict(), **new})
        scale = changes.get("logit_scale")
        return replace(
            self,
            visual=visual,
            text=text,
            logit_scale=self.logit_scale if scale is None else float(scale.float().exp()),
            changes={**self.changes, **changes},
        )


def load_clip(
    name: str,
    weights: Path | str | None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipTowers:
    """Load a frozen CLIP in evaluation mode.

    Args:
        name: "embedded-teacher", "embedded-student", or the name of an open_clip model.
        weights: a local `.pt` or `.safetensors` file, or a tag of weights that open_clip downloads
            ("openai", "laion2b_s34b_b88k"); None for the embedded models' own.
        device: of the towers.
        dtype: of the weights.

    Raises:
        UnknownName: unknown model.
        MissingFile: the weights are neither a file nor a tag of this model, or its tokenizer or the
            configuration of its text tower is not here.
        BadParams: the activation does not fit the weights, or a file's preprocessing is not known.
        BadArtifact: the file does not hold this model's weights.
    """
    if name in EMBEDDED:
        model = load_embedded(name, embedded_weights(name) if weights is None else Path(weights))
        return freeze(name, model.to(device=device, dtype=dtype), embedded_tokenizer())
    import open_clip

    if name not in open_clip.list_models():
        raise unknown("model", name, [*EMBEDDED, *open_clip.list_models()])
    tokenizer = _tokenizer(name)
    if weights in open_clip.list_pretrained_tags_by_model(name):
        model, preprocess = _from_tag(name, str(weights)), preprocess_of_tag(name, str(weights))
    else:
        model, preprocess = _from_file(name, _existing(name, weights))
    return freeze(name, model.to(device=device, dtype=dtype), tokenizer, preprocess)


def freeze(
    name: str, model: Any, tokenize: Tokenize, preprocess: Preprocess | None = None
) -> ClipTowers:
    """Freeze the towers of an open_clip `CustomTextCLIP`, in place.

    Args:
        name: of the model.
        model: the towers.
        tokenize: its tokenizer.
        preprocess: of its images; None for that of OpenAI's CLIPs.
    """
    model.requires_grad_(requires_grad=False).eval()
    size = model.visual.image_size
    return ClipTowers(
        name=name,
        visual=model.visual,
        text=model.text,
        logit_scale=float(model.logit_scale.float().exp()),
        tokenize=tokenize,
        preprocess=preprocess or Preprocess(int(size[0] if isinstance(size, tuple) else size)),
        context_length=tokenize([""]).shape[1],
    )


def local_tokenizer(name: str) -> Tokenize | None:
    """Return a model's tokenizer; None if there is none without a download, or no such model."""
    import open_clip

    tokenizer: Tokenize | None = None
    if name in EMBEDDED:
        tokenizer = embedded_tokenizer()
    elif name in open_clip.list_models() and not _downloads_tokenizer(name):
        tokenizer = open_clip.get_tokenizer(name)
    return tokenizer


def _downloads_tokenizer(name: str) -> bool:
    import open_clip

    return "hf_tokenizer_name" in open_clip.get_model_config(name)["text_cfg"]


def imagenet_templates(count: int = 60) -> tuple[str, ...]:
    """Return the first of OpenAI's 80 templates for ImageNet, "a photo of a {}." in front.

    PromptSRC averages its frozen text features over 60 of them.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:count]]
    return tuple(sorted(templates, key=lambda template: template != "a photo of a {}."))


def _existing(name: str, weights: Path | str | None) -> Path:
    import open_clip

    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    remedy = f"give a local file or one of the tags of this model ({tags})"
    path = Path(weights or "none given")
    if not path.is_file():
        raise missing(f"weights of '{name}'", path, remedy)
    if (path.parent / SUMS).is_file():
        check_sum(path, what="weights", remedy="fetch or copy the file again")
    return path


def _from_tag(name: str, tag: str) -> nn.Module:
    """Load the weights of a tag, which open_clip downloads or finds in its cache."""
    import open_clip

    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    _check_activation(name, f"tag '{tag}'", trained_with_quickgelu=trained)
    try:
        model: nn.Module = open_clip.create_model(
            name, pretrained=tag, precision="fp32", force_custom_text=True, pretrained_hf=False
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingFile(
            f"weights '{tag}' of '{name}' cannot be downloaded ({reason[:200]}); give a local"
            " file, or fetch them on a machine with a network"
        ) from None
    return model


def _from_file(name: str, path: Path) -> tuple[nn.Module, Preprocess]:
    state, sign = read_weights(path)
    if sign:
        _check_activation(name, f"file '{path}' (OpenAI's, {sign})", trained_with_quickgelu=True)
    model = build(name)
    state = {key: value for key, value in state.items() if not key.startswith(_DECODER)}
    _load_strictly(model, state, f"file '{path}' for '{name}'")
    return model, preprocess_of_file(name, path, is_openai=bool(sign))


def build(name: str) -> nn.Module:
    """Build an open_clip model with random weights, as a `CustomTextCLIP`.

    Raises:
        MissingFile: the text tower is one of transformers, which or whose configuration is not
            here.
    """
    import open_clip

    config = copy.deepcopy(open_clip.get_model_config(name))
    for key in ("custom_text", "multimodal_cfg"):  # CoCa's decoder is not used
        config.pop(key, None)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    try:
        model: nn.Module = open_clip.CustomTextCLIP(**config)
    except (OSError, RuntimeError) as error:
        raise _not_here("text tower", config["text_cfg"]["hf_model_name"], name, error) from None
    return model


def _tokenizer(name: str) -> Tokenize:
    import open_clip

    try:
        tokenizer: Tokenize = open_clip.get_tokenizer(name)
    except (ImportError, OSError) as error:
        source = open_clip.get_model_config(name)["text_cfg"]["hf_tokenizer_name"]
        raise _not_here("tokenizer", source, name, error) from None
    return tokenizer


def _not_here(what: str, source: str, name: str, error: Exception) -> MissingFile:
    reason = str(error).splitlines()[0][:200]
    return MissingFile(
        f"{what} '{source}' of model '{name}' cannot be loaded ({reason}); install"
        " promptkd[transformers], and download it from Hugging Face once, with a network"
    )


def _check_activation(name: str, source: str, *, trained_with_quickgelu: bool) -> None:
    """Refuse weights of another activation; open_clip only warns, and all features are wrong."""
    import open_clip

    config = open_clip.get_model_config(name)
    if bool(config.get("quick_gelu", False)) == trained_with_quickgelu:
        return
    plain = name.removesuffix("-quickgelu")
    how, model = ("with", f"{plain}-quickgelu") if trained_with_quickgelu else ("without", plain)
    raise BadParams(f"model '{name}': {source} was trained {how} QuickGELU; use model '{model}'")


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a complete state dict; keys of the text tower get their prefix."""
    renamed = {
        f"text.{key}" if key.startswith(_TEXT_KEYS) else key: value.float()
        for key, value in state.items()
    }
    try:
        model.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise BadArtifact(f"{source} does not fit the model: {str(error)[:300]}") from None
