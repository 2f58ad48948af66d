"""The student trains prompts and projector only, and comes back as it was stored."""

from pathlib import Path

import pytest
import torch
from tiny import images, towers

from pd_core.core.artifacts import read_tensors, write_tensors
from pd_core.core.errors import BadArtifact, BadParams
from pd_core.models.student import Student


def student(seed: int = 1) -> Student:
    return Student.untrained(towers(), feature_width=24, depth=9, length=4, seed=seed)


def test_prompts_and_projector_are_all_that_is_trained_and_stored() -> None:
    trained = {name for name, _ in student().named_parameters()}

    layers = {f"projector.{layer}.{part}" for layer in (0, 1, 3) for part in ("weight", "bias")}
    assert trained == {"image_prompts.tokens", *layers}
    assert not any("visual" in name for name in student().state_dict())


def test_features_lie_in_the_teachers_space_and_have_unit_length() -> None:
    features = student().eval()(images(5))

    assert features.shape == (5, 24)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))


def test_the_seed_decides_everything_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    first, again, other = student().state_dict(), student().state_dict(), student(2).state_dict()

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("image_prompts.tokens", "projector.0.weight", "projector.3.weight"):
        assert not torch.equal(first[name], other[name])


def test_a_stored_student_gives_the_same_features(tmp_path: Path) -> None:
    made = student()
    made.train()(images(5))  # moves the running statistics
    made.eval().save(tmp_path / "student.safetensors")
    before = torch.get_rng_state()

    loaded = Student.load(tmp_path / "student.safetensors", towers())

    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded(images(3)), made(images(3)))


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(BadParams, match="image prompt depth = 0"):
        Student.untrained(towers(), feature_width=24, depth=0)


def test_a_student_of_another_model_or_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    student().save(path)

    with pytest.raises(BadArtifact, match="trained on model 'tiny', not on 'other'"):
        Student.load(path, towers("other"))
    with pytest.raises(BadArtifact, match="32.; the tower has 3 layers of width 64"):
        Student.load(path, towers(width=64))
    with pytest.raises(BadArtifact, match="does not fit.*size mismatch"):
        Student.load(path, towers(joint_width=8))


def test_a_student_that_lost_its_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    student().save(path)
    tensors, metadata = read_tensors(path)
    del tensors["image.tokens"]
    write_tensors(path, tensors, metadata)

    with pytest.raises(BadArtifact, match="image prompts of depth"):
        Student.load(path, towers())
