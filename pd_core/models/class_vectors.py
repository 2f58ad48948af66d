"""Class vectors: the teacher's text features, computed once and shared with the student.

Shapes: B images, C classes, D the teacher's joint width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pd_core.core.artifacts import check_numbers, read_tensors, understood, write_tensors
from pd_core.core.atomic import write_folder
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.prompts import encode_many_texts
from pd_core.models.teacher import Teacher

OnProgress = Callable[[int, int], None]

FILE = "class_vectors.safetensors"


@dataclass(frozen=True)
class ClassVectors:
    """One unit vector per class.

    Attributes:
        names: C class names, by label.
        vectors: (C, D), unit length, fp32.
        logit_scale: of the model whose text tower made them.
        source: which model that was, for people to read.
    """

    names: tuple[str, ...]
    vectors: Tensor
    logit_scale: float
    source: str

    def logits(self, features: Tensor, *, logit_scale: float | None = None) -> Tensor:
        """Compare image features with every class.

        Args:
            features: (B, D), unit length.
            logit_scale: of the model that made the features; by default that of
                the model that made the vectors.

        Returns:
            (B, C) logits.
        """
        scale = self.logit_scale if logit_scale is None else logit_scale
        return scale * features @ self.vectors.T

    def select(self, labels: Sequence[int]) -> Self:
        """Keep some classes, in the order given; their labels then count from zero.

        Raises:
            BadParams: a label is out of range.
        """
        wrong = [label for label in labels if not 0 <= label < len(self.names)]
        if wrong:
            raise BadParams(f"class label {wrong[0]}; give labels from 0 to {len(self.names) - 1}")
        names = tuple(self.names[label] for label in labels)
        return replace(self, names=names, vectors=self.vectors[list(labels)])

    def to(self, device: torch.device | str) -> Self:
        """Move the vectors to a device."""
        return replace(self, vectors=self.vectors.to(device))

    def save(self, path: Path) -> None:
        """Write the vectors.

        Raises:
            PdError: the folder cannot be written.
        """
        scale = torch.tensor(self.logit_scale, dtype=torch.float64)
        names = json.dumps(self.names, ensure_ascii=False)
        write_tensors(
            path,
            {"vectors": self.vectors, "logit_scale": scale},
            {"names": names, "source": self.source},
        )

    @classmethod
    def load(cls, path: Path, *, remedy: str = "build the class vectors first") -> Self:
        """Read the vectors, onto the CPU.

        Args:
            path: written by `save`.
            remedy: what to do when there is no such file.

        Raises:
            MissingFile: there is no such file.
            BadArtifact: names and vectors do not go together.
        """
        tensors, metadata = read_tensors(path, what="class vectors", remedy=remedy)
        with understood(path, what="class vectors", remedy=remedy):
            names = json.loads(metadata.get("names", "[]"))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names, which are no list of texts")
        vectors = tensors.get("vectors", torch.empty(0, 0))
        scale = tensors.get("logit_scale", torch.empty(0))
        if vectors.dim() != 2 or len(names) != len(vectors) or scale.dim() != 0:
            raise BadArtifact(
                f"class vectors '{path}' hold {len(names)} names and {len(vectors)} vectors, of"
                f" shape {list(vectors.shape)}, and {scale.numel()} scales; {remedy}"
            )
        check_numbers(tensors, path, what="class vectors", remedy=remedy)
        return cls(tuple(names), vectors, float(scale), metadata.get("source", ""))


def build(
    teacher: Teacher, names: Sequence[str], *, on_progress: OnProgress | None = None
) -> ClassVectors:
    """Compute the class vectors of a teacher, tuned or zero-shot.

    Args:
        teacher: whose text tower and prompts are used.
        names: C class names, by label.
        on_progress: called with classes done and classes in all.

    Returns:
        The vectors, on the teacher's device.
    """
    features = encode_many_texts(
        teacher.towers.text, teacher.tokens(names), teacher.text_prompts, on_progress=on_progress
    )
    return ClassVectors(
        names=tuple(names),
        vectors=F.normalize(features, dim=-1),
        logit_scale=teacher.logit_scale,
        source=f"{teacher.towers.name} ({teacher.method})",
    )


def template_features(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Average the frozen text features of every class over many templates.

    PromptSRC averages before it normalises, so that a template with long
    features counts for more (PromptSRC, section 3.2.3, "textual diversity").

    Args:
        teacher: whose frozen text tower is used, without prompts.
        names: C class names.
        templates: T texts with one `{}`.

    Returns:
        (C, D), the mean of un-normalised features, fp32.
    """
    towers = teacher.towers
    plain = [name.replace("_", " ") for name in names]
    features = []
    for template in templates:  # whose words in front of the names are then computed once
        tokens = towers.tokenize([template.replace("{}", name) for name in plain])
        features.append(encode_many_texts(towers.text, tokens.to(towers.device)))
    return torch.stack(features).mean(dim=0)


def run(
    prepared: Path,
    teacher: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None = None,
    threads: int = 1,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> ClassVectors:
    """Stage `class_vectors`: compute and store the vectors of all classes.

    Args:
        prepared: folder written by the stage `prepare`; only its class names are used.
        teacher: folder written by the stage `teacher`.
        out: folder to write `class_vectors.safetensors` into.
        model: name of the teacher's CLIP.
        weights: of the teacher's CLIP.
        threads: CPU threads; they decide the last bits.
        device: where to compute.
        on_progress: called with classes done and classes in all.

    Returns:
        The vectors, on the CPU.

    Raises:
        MissingFile: an earlier stage has not run.
        BadArtifact: the teacher does not fit the model.
    """
    set_threads(threads)
    classes = read_prepared(prepared).classes
    towers = load_clip(model, weights, device=device)
    tuned = Teacher.load(
        teacher / "teacher.safetensors", towers, remedy=f"run `dvc repro teacher@{teacher.name}`"
    )
    vectors = build(tuned, classes, on_progress=on_progress).to("cpu")
    with write_folder(out) as folder:
        vectors.save(folder / FILE)
    return vectors
