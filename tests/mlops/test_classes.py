"""Classes are added, removed and renamed without training, each as a new version."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyStudent
from torch import Tensor
from torch.nn.functional import normalize
from tracked import store

from pd_core.core.errors import BadParams, UnknownName
from pd_core.mlops import bundle, predictor, registry
from pd_core.mlops.drift import Reference
from pd_core.mlops.registry import classes
from pd_core.mlops.registry.register import Origin, register
from pd_core.models.portable.student import PortableStudent
from pd_core.pipeline.provenance import Lineage

__all__ = ["store"]  # a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("no_onnx"),
]

WIDTH = 16


@pytest.fixture
def student(tiny_student: TinyStudent) -> PortableStudent:
    return predictor.load_student(tiny_student.folder, weights=tiny_student.weights).student


def embed(names: Any, _others: Any = ()) -> Tensor:
    """Make the vectors of class names, always the same for a name."""
    rows = [
        torch.randn(WIDTH, generator=torch.Generator().manual_seed(len(name))) for name in names
    ]
    return normalize(torch.stack(rows), dim=-1)


def noise(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_an_added_class_has_the_teachers_vector_and_the_others_keep_their_order(
    student: PortableStudent,
) -> None:
    change = classes.add(student, ["golden  retriever", "delta"], embed)
    changed = classes.apply(student, change)
    assert changed.names == ("alpha", "beta", "gamma", "golden retriever", "delta")
    vectors = changed.network.class_vectors
    assert torch.equal(vectors[:3], student.network.class_vectors)
    assert torch.equal(vectors[3:], embed(["golden retriever", "delta"]))
    before, after = student.answers(noise(6)), changed.answers(noise(6))
    assert np.allclose(before.features, after.features, atol=1e-6)
    shared = after.probabilities[:, :3] / after.probabilities[:, :3].sum(axis=1, keepdims=True)
    assert np.allclose(shared, before.probabilities, atol=1e-6)
    assert student.names == ("alpha", "beta", "gamma")  # the given one stays as it was


def test_a_removed_class_is_never_answered_and_the_others_are_as_before(
    student: PortableStudent,
) -> None:
    changed = classes.apply(student, classes.remove(student, ["beta"]))
    assert changed.names == ("alpha", "gamma")
    before, after = student.answers(noise(6)).probabilities, changed.answers(noise(6)).probabilities
    kept = before[:, [0, 2]]
    assert np.allclose(after, kept / kept.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_renamed_class_keeps_its_pictures_unless_its_vector_is_computed(
    student: PortableStudent,
) -> None:
    kept = classes.apply(student, classes.rename(student, "beta", "second"))
    assert kept.names == ("alpha", "second", "gamma")
    assert torch.equal(kept.network.class_vectors, student.network.class_vectors)
    computed = classes.apply(student, classes.rename(student, "beta", "second", embed))
    assert torch.equal(computed.network.class_vectors[1], embed(["second"])[0])
    assert torch.equal(computed.network.class_vectors[0], student.network.class_vectors[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: classes.add(s, ["beta"], embed), BadParams, "there is a class 'beta' already"),
        (lambda s: classes.add(s, ["x", "x"], embed), BadParams, "there is a class 'x' already"),
        (lambda s: classes.add(s, ["  "], embed), BadParams, "a class name is empty"),
        (lambda s: classes.remove(s, ["bet"]), UnknownName, "did you mean 'beta'"),
        (lambda s: classes.remove(s, ["alpha", "beta"]), BadParams, "1 classes would be left"),
        (lambda s: classes.add(s, ["BETA_"], embed), BadParams, "same text as 'BETA_' for CLIP"),
        (lambda s: classes.add(s, ["x y", "X_Y"], embed), BadParams, "class 'x y' already"),
        (lambda s: classes.rename(s, "beta", "alpha"), BadParams, "already"),
        (lambda s: classes.rename(s, "beta", "Alpha"), BadParams, "class 'alpha' already"),
        (lambda s: classes.rename(s, "beta", "beta"), BadParams, "named 'beta' already"),
        (lambda s: classes.rename(s, "delta", "x"), UnknownName, "known: alpha, beta, gamma"),
        (lambda s: classes.add(s, ["x"], lambda *_: torch.ones(1, 8)), BadParams, "8 wide"),
    ],
)  # fmt: skip
def test_a_change_that_makes_no_sense_is_refused(
    student: PortableStudent, make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(student)


def test_the_new_version_has_its_parent_and_its_card_and_reference_follow(
    store: str, student: PortableStudent, picture: bytes, tmp_path: Path
) -> None:
    lineage = Lineage("abc", outs={"data/teacher/greek/teacher.safetensors": "123"})
    metrics = {"student": {"all": 50.0}}
    origin = Origin("quickstart", "greek", lineage, metrics, tags={"seed": "1"})
    pictures = student.answers(noise(10))
    reference = Reference.of(pictures.probabilities, pictures.features)
    register(store, student, origin, example=picture, reference=reference)
    parent = registry.find(store, "greek/1")

    def make(given: PortableStudent) -> classes.Change:
        return classes.add(given, ["delta"], embed)

    _, dry = classes.register_change(store, parent, make, experiment="promptkd", dry_run=True)
    assert dry is None
    assert len(registry.versions(store, "greek")) == 1

    _, made = classes.register_change(store, parent, make, experiment="promptkd")
    assert made is not None
    assert (made.version, made.created) == (2, True)
    child = registry.find(store, "greek/2")
    assert registry.lineage(store, child) == lineage
    tags = {"kind": "classes-add", "parent": "1", "dataset": "greek", "seed": "1"}
    assert tags.items() <= child.tags.items()
    assert parent.tags["student/all"] == "50.00"
    assert "student/all" not in child.tags  # nobody has measured this version
    folder = registry.fetch(store, child, tmp_path / "model") / registry.BUNDLE
    card = (folder / bundle.CARD).read_text()
    assert "- added 'delta', without training (from version 1)" in card
    assert "3. delta" in card
    assert card.count("## Classes") == 1
    changed = predictor.load_bundle(folder)
    own = Reference.load(folder / bundle.REFERENCE)
    assert np.array_equal(own.features, reference.features)
    answered = changed.answers(noise(10)).probabilities
    assert np.array_equal(own.predicted, answered.argmax(axis=1))
    assert np.allclose(own.confidence, answered.max(axis=1), atol=1e-6)
    assert not np.allclose(own.confidence, reference.confidence, atol=1e-3)

    _, again = classes.register_change(store, parent, make, experiment="promptkd")
    assert again is not None
    assert (again.version, again.created) == (2, False)
    _, third = classes.register_change(
        store, child, lambda s: classes.remove(s, ["alpha"]), experiment="promptkd"
    )
    assert third is not None
    grandchild = registry.fetch(store, registry.find(store, "greek/3"), tmp_path / "third")
    card = (grandchild / registry.BUNDLE / bundle.CARD).read_text()
    assert "(from version 1)" in card
    assert "- removed 'alpha' (from version 2)" in card
