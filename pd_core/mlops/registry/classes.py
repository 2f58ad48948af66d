"""Change a registered student's classes without training: the class vectors are the classifier.

A change makes a new version whose parent is the one that was changed; tower, prompts and projector
are the same. New class vectors need the text tower that the other vectors come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from pd_core.core.errors import BadParams, unknown
from pd_core.core.names import listed, printable
from pd_core.data.catalog.class_names import normalized, words
from pd_core.mlops import bundle
from pd_core.mlops.drift import Reference
from pd_core.mlops.predictor import load_bundle
from pd_core.mlops.registry import BUNDLE, INHERITED, KIND, PARENT, Version, fetch, lineage
from pd_core.mlops.registry.images import input_example
from pd_core.mlops.registry.register import Origin, Registered, register
from pd_core.models.portable.student import PortableStudent

CHANGE = "change"
"""Tag of a changed version: a description."""

FEWEST = 2  # classes

Embed = Callable[[Sequence[str], Sequence[str]], Tensor]
"""New class names (k,), and those that stay, to class vectors (k, D) of unit length."""


@dataclass(frozen=True)
class Change:
    """Other classes for a student.

    Attributes:
        kind: `classes-add`, `classes-remove` or `classes-rename`.
        names: C class names, all of them.
        vectors: (C, D), on the CPU.
        text: a description in one line.
    """

    kind: str
    names: tuple[str, ...]
    vectors: Tensor
    text: str


def add(student: PortableStudent, names: Sequence[str], embed: Embed) -> Change:
    """Append classes, whose vectors `embed` computes.

    Raises:
        BadParams: a name is empty, or has the same text as another class.
    """
    new = _clean(names, student.names)
    vectors = torch.cat([_vectors(student), _fitting(student, embed(new, student.names))])
    text = f"added {listed(new)}, without training"
    return Change("classes-add", (*student.names, *new), vectors, text)


def remove(student: PortableStudent, names: Sequence[str]) -> Change:
    """Remove classes.

    Raises:
        UnknownName: the student has no class of that name.
        BadParams: fewer than two would be left.
    """
    removed = sorted({_label(student, name) for name in names})
    kept = [label for label in range(len(student.names)) if label not in removed]
    if len(kept) < FEWEST:
        raise BadParams(f"{len(kept)} classes would be left; a classifier needs {FEWEST}")
    text = f"removed {listed([student.names[label] for label in removed])}"
    left = tuple(student.names[label] for label in kept)
    return Change("classes-remove", left, _vectors(student)[kept], text)


def rename(student: PortableStudent, old: str, new: str, embed: Embed | None = None) -> Change:
    """Rename a class, with the vector of its new name from `embed`.

    Without `embed` it keeps the old vector, so that the same images belong to it.

    Raises:
        UnknownName: the student has no class `old`.
        BadParams: the new name is empty or the old one, or has the same text as another class.
    """
    label = _label(student, old)
    others = (*student.names[:label], *student.names[label + 1 :])
    (name,) = _clean([new], others)
    if name == old:
        raise BadParams(f"the class is named '{old}' already; give another name")
    vectors = _vectors(student).clone()
    if embed is not None:
        vectors[label] = _fitting(student, embed([name], others))[0]
    names = (*others[:label], name, *others[label:])
    how = "with its vector" if embed is None else "with a vector of the new name"
    return Change("classes-rename", names, vectors, f"renamed '{old}' to '{name}', {how}")


def apply(student: PortableStudent, change: Change) -> PortableStudent:
    """Return a copy of the student with the changed classes."""
    network = copy.deepcopy(student.network).cpu()
    network.class_vectors = nn.Parameter(change.vectors.clone(), requires_grad=False)
    sizes = {**vars(network.sizes), "classes": len(change.names)}
    network.sizes = type(network.sizes)(**sizes)
    return PortableStudent(network, {**student.info, "names": list(change.names)})


def register_change(
    store: str,
    parent: Version,
    make: Callable[[PortableStudent], Change],
    *,
    experiment: str,
    dry_run: bool = False,
) -> tuple[Change, Registered | None]:
    """Change the classes of a version, which stays as it is, and register the result.

    A dry run registers nothing: instead of the new version there is None.

    Raises:
        BadArtifact: the version holds no student.
    """
    with TemporaryDirectory() as temporary:
        model = fetch(store, parent, Path(temporary))
        folder = model / BUNDLE
        student = load_bundle(folder)
        if "export" in student.info:
            raise BadParams(
                f"version {parent.number} is in {student.precision}, and its class vectors are "
                f"part of its file; change the classes of version {parent.tags[PARENT]}, which it "
                f"was made from, and quantize the result"
            )
        change = make(student)
        if dry_run:
            return change, None
        changed = apply(student, change)
        before = (folder / bundle.CARD).read_text(encoding="utf-8")
        line = f"{change.text} (from version {parent.number})"
        kept = {key: value for key, value in parent.tags.items() if key in INHERITED}
        origin = Origin(
            profile=parent.tags.get("profile", "quickstart"),
            dataset=parent.dataset,
            lineage=lineage(store, parent),
            tags={**kept, PARENT: str(parent.number), KIND: change.kind, CHANGE: change.text},
            experiment=experiment,
            card=bundle.with_change(before, line, change.names),
        )
        example, reference = input_example(model), _reference(folder, changed)
        return change, register(store, changed, origin, example=example, reference=reference)


def _reference(folder: Path, student: PortableStudent) -> Reference | None:
    """Recompute the predictions for the same training images, whose features stay."""
    path = folder / bundle.REFERENCE
    if not path.is_file():
        return None
    features = Reference.load(path).features
    with torch.inference_mode():
        probabilities = student.network.compare(torch.from_numpy(features))
    return Reference.of(probabilities.numpy(), features)


def _clean(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return new names in NFC and with single blanks; no two classes may have the same text."""
    new = [normalized(" ".join(name.split())) for name in names]
    taken = {words(name): name for name in others}
    for name in new:
        text = words(name)
        if not text:
            raise BadParams("a class name is empty; give a few words that describe the class")
        if text in taken:
            raise BadParams(
                f"there is a class '{printable(taken[text])}' already, which has the same text as "
                f"'{printable(name)}' for CLIP; give another name"
            )
        taken[text] = name
    return new


def _label(student: PortableStudent, name: str) -> int:
    if name not in student.names:
        raise unknown("class", name, student.names)
    return student.names.index(name)


def _vectors(student: PortableStudent) -> Tensor:
    return student.network.class_vectors.detach().cpu()


def _fitting(student: PortableStudent, vectors: Tensor) -> Tensor:
    width = student.network.sizes.feature_width
    if vectors.shape[1] != width:
        raise BadParams(
            f"the teacher's vectors are {vectors.shape[1]} wide, the student's {width}; give the "
            f"teacher that it was distilled from"
        )
    return vectors.detach().cpu().float()
