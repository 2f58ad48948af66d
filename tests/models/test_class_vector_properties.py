"""Properties of all class vectors: they are stored exactly, and corruption is noticed."""

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pd_core.core.errors import BadArtifact
from pd_core.models.class_vectors import ClassVectors

examples = settings(max_examples=30)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@st.composite
def class_vectors(draw: st.DrawFn) -> ClassVectors:
    """Draw class vectors with any names, repeated and empty ones too."""
    names = tuple(draw(st.lists(st.text(), min_size=1, max_size=6)))
    return ClassVectors(
        names=names,
        vectors=unit(len(names), draw(st.integers(1, 6)), seed=draw(st.integers(0, 99))),
        logit_scale=draw(st.floats(0.01, 100)),
        source=draw(st.text()),
    )


def content(vectors: ClassVectors) -> tuple[object, ...]:
    return (vectors.names, vectors.vectors.tolist(), vectors.logit_scale, vectors.source)


@examples
@given(made=class_vectors())
def test_vectors_come_back_to_the_bit_whatever_the_classes_are_called(made: ClassVectors) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        made.save(path)
        first = path.read_bytes()

        loaded = ClassVectors.load(path)
        loaded.save(path)

        assert content(loaded) == content(made)
        assert path.read_bytes() == first


@examples
@given(made=class_vectors(), data=st.data())
def test_one_flipped_bit_never_gives_other_vectors(made: ClassVectors, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        made.save(path)
        damaged = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)

        # Not every one is refused: a name may be written as "\u00e9" or "\u00E9" in the header.
        with suppress(BadArtifact):
            assert content(ClassVectors.load(path)) == content(made)


@examples
@given(made=class_vectors(), data=st.data())
def test_vectors_that_were_cut_off_anywhere_are_refused(
    made: ClassVectors, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        made.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])

        with pytest.raises(BadArtifact, match="build the class vectors first"):
            ClassVectors.load(path)


@examples
@given(made=class_vectors(), data=st.data())
def test_a_selection_of_a_selection_is_a_selection(made: ClassVectors, data: st.DataObject) -> None:
    first = data.draw(st.lists(st.integers(0, len(made.names) - 1), min_size=1, max_size=8))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=8))

    chosen = made.select(first).select(second)

    assert content(chosen) == content(made.select([first[label] for label in second]))
    assert chosen.names == tuple(made.names[first[label]] for label in second)


@examples
@given(made=class_vectors())
def test_selecting_all_classes_changes_nothing(made: ClassVectors) -> None:
    assert content(made.select(range(len(made.names)))) == content(made)


@examples
@given(made=class_vectors(), data=st.data())
def test_selected_classes_have_the_logits_they_had_among_all(
    made: ClassVectors, data: st.DataObject
) -> None:
    features = unit(3, made.vectors.shape[1], seed=7)
    labels = data.draw(st.lists(st.integers(0, len(made.names) - 1), min_size=1, max_size=8))

    torch.testing.assert_close(
        made.select(labels).logits(features), made.logits(features)[:, labels]
    )


@examples
@given(made=class_vectors(), scale=st.floats(0.01, 100), factor=st.floats(-8, 8))
def test_logits_are_linear_in_their_scale(made: ClassVectors, scale: float, factor: float) -> None:
    features = unit(3, made.vectors.shape[1], seed=7)

    scaled = made.logits(features, logit_scale=factor * scale)

    torch.testing.assert_close(scaled, factor * made.logits(features, logit_scale=scale))


@examples
@given(made=class_vectors())
def test_without_a_scale_of_the_images_the_vectors_own_one_counts(made: ClassVectors) -> None:
    features = unit(3, made.vectors.shape[1], seed=7)

    expected = made.logits(features, logit_scale=made.logit_scale)
    assert torch.equal(made.logits(features), expected)
