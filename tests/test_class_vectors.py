"""Class vectors are computed once, stored, and kept apart from the images' own scale."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, images, towers

from pd_core.artifacts import read_tensors, write_tensors
from pd_core.class_vectors import ClassVectors, build, template_features
from pd_core.errors import BadArtifact, BadParams, MissingFile
from pd_core.models.teacher import Teacher


def teacher() -> Teacher:
    return Teacher.untrained(towers(), text_length=2, seed=3)


def vectors() -> ClassVectors:
    return build(teacher(), NAMES)


def test_a_vector_is_the_text_feature_of_its_class() -> None:
    made = vectors()

    assert made.names == NAMES
    assert made.source == "tiny (promptsrc)"
    for name, vector in zip(NAMES, made.vectors, strict=True):
        alone = teacher().text_features(teacher().tokens([name]))[0]
        torch.testing.assert_close(vector, alone)


def test_logits_are_scaled_cosines() -> None:
    made = vectors()
    features = teacher().image_features(images(4)).detach()

    cosines = F.cosine_similarity(features[:, None], made.vectors[None], dim=-1)
    torch.testing.assert_close(made.logits(features), towers().logit_scale * cosines)
    torch.testing.assert_close(made.logits(features, logit_scale=2.0), 2 * cosines)


def test_selected_classes_keep_their_vectors_and_are_counted_from_zero() -> None:
    chosen = vectors().select([3, 1])

    assert chosen.names == ("forget-me-not", "maine coon")
    assert torch.equal(chosen.vectors, vectors().vectors[[3, 1]])
    with pytest.raises(BadParams, match="class label 5; give labels from 0 to 4"):
        vectors().select([0, 5])


def test_vectors_come_back_to_the_bit(tmp_path: Path) -> None:
    made = vectors()
    made.save(tmp_path / "vectors.safetensors")

    loaded = ClassVectors.load(tmp_path / "vectors.safetensors")

    assert torch.equal(loaded.vectors, made.vectors)
    assert (loaded.names, loaded.logit_scale, loaded.source) == (
        made.names,
        made.logit_scale,
        made.source,
    )


def test_vectors_that_do_not_match_their_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    vectors().save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"vectors": tensors["vectors"][:3]}, metadata)

    with pytest.raises(BadArtifact, match="5 names and 3 vectors"):
        ClassVectors.load(path)


def test_missing_vectors_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="dvc repro class_vectors@dtd"):
        ClassVectors.load(tmp_path / "no", remedy="run `dvc repro class_vectors@dtd`")


def test_template_features_are_means_of_unnormalised_frozen_features() -> None:
    templates = ["a photo of a {}.", "art of the {}."]

    ours = template_features(teacher(), NAMES, templates)

    text = towers().text
    for name, feature in zip(NAMES, ours, strict=True):
        plain = name.replace("_", " ")
        texts = towers().tokenize([f"a photo of a {plain}.", f"art of the {plain}."])
        torch.testing.assert_close(feature, text(texts).mean(dim=0), rtol=1e-4, atol=1e-5)
