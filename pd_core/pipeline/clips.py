"""CLIP models of a new project: by open_clip's tag, by file, or the embedded ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pd_core.core.errors import missing, unknown
from pd_core.data.acquire.sources import WEIGHTS, RemoteFile, weights_of_tag

Fetch = Callable[[RemoteFile, Path], None]
"""Function that fetches a weight file to a data root."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model and its weights.

    Attributes:
        model: name of the model.
        file: name of the weights' file in the project.
        comment: description of the weights.
        put: function that puts the weights below a data root.
    """

    model: str
    file: str
    comment: str
    put: Callable[[Path], None]

    @property
    def is_embedded(self) -> bool:
        """True for a model of this package."""
        from pd_core.models.embedded import EMBEDDED

        return self.model in EMBEDDED


def clip_of(role: str, text: str, fetch: Fetch) -> Clip:
    """Return a CLIP by `MODEL:TAG`, `MODEL:FILE`, or the name of an embedded model.

    Args:
        role: "teacher" or "student", which makes the names of files unique.
        text: model and weights.
        fetch: function that fetches weights.

    Raises:
        UnknownName: there is no such model.
        MissingFile: the weights are neither a file nor a tag of the model.
        BadArtifact: the file does not hold the model's weights.
        BadParams: the model's activation is not that of the weights.
    """
    from pd_core.models.clip import load_clip
    from pd_core.models.embedded import EMBEDDED, embedded_weights
    from pd_core.models.pretrained import model_names, published, tags_of

    model, _, weights = text.partition(":")
    if model not in (names := model_names()):
        raise unknown("model", model, names)
    if model in EMBEDDED and not weights:
        return _of_file(role, model, embedded_weights(model), "of this package")
    file = Path(weights).expanduser()
    if file.is_file():
        load_clip(model, file)  # refuses weights of another model
        return _of_file(role, model, file, f"your file {file.name}")
    if weights not in (tags := tags_of(model)):
        remedy = f"give {model}:FILE, or {model}:TAG with a tag of open_clip ({', '.join(tags)})"
        raise missing(f"weights of '{model}'", weights or "none given", remedy)
    remote = weights_of_tag(model, weights)
    return Clip(
        published(model, weights).model,
        remote.name,
        f"open_clip's tag {weights}; `promptkd weights fetch`",
        lambda data_root: fetch(remote, data_root),
    )


def _of_file(role: str, model: str, file: Path, comment: str) -> Clip:
    name = f"{role}.{file.name}"

    def link(data_root: Path) -> None:
        folder = data_root / WEIGHTS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(file.resolve())

    return Clip(model, name, comment, link)
