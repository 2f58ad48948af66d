"""Models of open_clip and this package, and the tags of their published weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pd_core.models.embedded import EMBEDDED

_PICKLE = "open_clip_pytorch_model.bin"  # on the hub, where there is no .safetensors file


class Published(NamedTuple):
    """Publication of the weights of a tag.

    Attributes:
        model: name of the model with the activation that the weights were trained with.
        url: address of a file, or "".
        repository: repository on Hugging Face, or "".
        file: name of the file there.
    """

    model: str
    url: str
    repository: str
    file: str


def model_names() -> list[str]:
    """Return the names of all models, the embedded ones first."""
    import open_clip

    return [*EMBEDDED, *open_clip.list_models()]


def tags_of(model: str) -> list[str]:
    """Return the tags of a model's published weights; none for an unknown or embedded model."""
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(model))


def published(model: str, tag: str) -> Published:
    """Return the publication of one of the `tags_of` a model."""
    import open_clip

    content = open_clip.get_pretrained_cfg(model, tag)
    plain = model.removesuffix("-quickgelu")
    quick = f"{plain}-quickgelu"
    if content.get("quick_gelu", False):
        trained = quick if quick in open_clip.list_models() else model
    else:
        trained = plain
    repository, _, file = content["hf_hub"].rpartition("/")
    return Published(trained, content["url"], repository, file or "open_clip_model.safetensors")


def cached_weights(model: str, tag: str) -> Path | None:
    """Return the file of a tag's weights in the cache that open_clip downloads to, if any."""
    from huggingface_hub import try_to_load_from_cache

    source = published(model, tag)
    if not source.repository:
        file = Path.home() / ".cache" / "clip" / source.url.rpartition("/")[2]
        return file if file.is_file() else None
    for name in (source.file, Path(source.file).with_suffix(".safetensors").name, _PICKLE):
        path = try_to_load_from_cache(source.repository, name)
        if isinstance(path, str):
            return Path(path)
    return None
