"""Preprocessing of open_clip's models, by the tag or the file of their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadArtifact, BadParams
from pd_core.models.portable.preprocess import Preprocess

_CONFIG = "open_clip_config.json"
_WEIGHTS = "open_clip_"  # begins the names of weights that have `_CONFIG` beside them on the hub

_KEYS = ("mean", "std", "interpolation", "resize_mode")


def preprocess_of_tag(name: str, tag: str) -> Preprocess:
    """Return the preprocessing of an open_clip model with the weights of a tag.

    Raises:
        BadParams: it is not supported.
    """
    import open_clip

    return _of(name, open_clip.get_pretrained_cfg(name, tag), f"tag '{tag}'")


def config_of_file(path: Path) -> Path:
    """Return the configuration, which may be missing, of a file of weights.

    `weights.json` belongs to `weights.safetensors`; `open_clip_config.json` belongs to
    `open_clip_model.safetensors`, as on the hub. The key `preprocess_cfg` has the preprocessing.
    Links are followed.
    """
    path = path.resolve()
    on_hub = path.with_name(_CONFIG)
    return on_hub if path.name.startswith(_WEIGHTS) else path.with_suffix(".json")


def preprocess_of_file(name: str, path: Path, *, is_openai: bool = False) -> Preprocess:
    """Return the preprocessing of an open_clip model with the weights of a file.

    It is that of the configuration beside the file (see `config_of_file`); without one, that of
    the tag at the end of its name, as in `ViT-L-14.laion2b_s32b_b82k.safetensors`, or of all tags
    of the model. A model without tags has that of OpenAI's CLIPs.

    Args:
        name: of the model.
        path: of the weights.
        is_openai: the file is one of OpenAI's.

    Raises:
        BadArtifact: the configuration beside the file is corrupt.
        BadParams: the tags of the model differ, and there is no configuration.
    """
    import open_clip

    config = config_of_file(path)
    if config.is_file():
        return _of(name, _read(config), f"'{config}'")
    if is_openai:
        return _of(name, {}, "OpenAI")
    tags = open_clip.list_pretrained_tags_by_model(name)
    named = [tag for tag in tags if path.stem.endswith(f".{tag}")]
    candidates = {preprocess_of_tag(name, tag) for tag in named or tags} or {
        _of(name, {}, "OpenAI")
    }
    if len(candidates) > 1:
        raise BadParams(
            f"'{path}': weights of '{name}' were trained with different preprocessing; put the"
            f" {_CONFIG} of these weights beside them as '{config.name}'"
        )
    return candidates.pop()


def _of(name: str, config: Mapping[str, Any], source: str) -> Preprocess:
    import open_clip

    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    values = {key: config[key] for key in _KEYS if config.get(key) is not None}
    for key in ("mean", "std"):
        if isinstance(values.get(key), int | float):
            values[key] = [values[key]] * 3
    try:
        return Preprocess.of({"size": size, **values})
    except (TypeError, ValueError) as error:
        raise BadParams(
            f"model '{name}': preprocessing of {source} is not supported ({error}); use other"
            " weights"
        ) from None


def _read(config: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(config.read_text("utf-8"))["preprocess_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(
            f"'{config}' has no preprocess_cfg ({type(error).__name__}); fetch it again, or remove"
            " it"
        ) from None
    if not isinstance(content, Mapping):
        raise BadArtifact(f"'{config}': preprocess_cfg is no mapping; fetch it again")
    return content
