"""Class vectors are computed once, stored, and kept apart from the images' own scale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import NAMES, images, towers

from pd_core.core.artifacts import read_tensors, write_tensors
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.models.class_vectors import ClassVectors, build, template_features
from pd_core.models.teacher import Teacher
from pd_core.training.teacher import class_vectors as vectors_stage


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


def test_building_reports_progress_in_classes() -> None:
    progress: list[tuple[int, int]] = []

    build(teacher(), NAMES, on_progress=lambda *counts: progress.append(counts))

    assert progress[0] == (0, len(NAMES))  # called before each batch


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


def test_vectors_come_back_to_the_bit_and_with_names_that_people_can_read(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    made = replace(vectors(), names=("ñandú", *NAMES[1:]), logit_scale=100 / 3)
    made.save(path)

    loaded = ClassVectors.load(path)

    assert torch.equal(loaded.vectors, made.vectors)
    assert replace(loaded, vectors=made.vectors) == made
    assert '"ñandú"' in read_tensors(path)[1]["names"]


def rewritten(path: Path, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Store vectors with some tensors and metadata replaced, or left out for None."""
    vectors().save(path)
    old_tensors, old_metadata = read_tensors(path)
    write_tensors(path, present({**old_tensors, **tensors}), present({**old_metadata, **metadata}))


def present(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}


LIST = "is wrong at its names, which must be a list of strings"
NAN = "vectors' has values that are not finite floating-point numbers"


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"names": None}, "have 0 names, vectors of shape [5, 16] and 1 scales"),
        ({"vectors": None}, {}, "have 5 names, vectors of shape [0, 0] and 1 scales"),
        ({"logit_scale": None}, {}, "have 5 names, vectors of shape [5, 16] and 0 scales"),
        ({"vectors": torch.ones(3, 16)}, {}, "have 5 names, vectors of shape [3, 16] and 1 scales"),
        ({"vectors": torch.ones(5)}, {}, "have 5 names, vectors of shape [5] and 1 scales"),
        ({"vectors": torch.ones(5, 4, 4)}, {}, "have 5 names, vectors of shape [5, 4, 4] and 1 sc"),
        ({"logit_scale": torch.ones(1)}, {}, "have 5 names, vectors of shape [5, 16] and 1 scales"),
        ({"vectors": torch.full((5, 16), torch.nan)}, {}, f": tensor '{NAN}"),
        ({}, {"names": '{"a": 1}'}, LIST),
        ({}, {"names": '["a", "b", "c", "d", 5]'}, LIST),
        ({}, {"names": "["}, "is wrong at Expecting value"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    path = tmp_path / "vectors.safetensors"
    rewritten(path, tensors, metadata)

    for remedy, rest in ("build the class vectors first", {}), ("x", {"remedy": "x"}):
        with pytest.raises(BadArtifact) as caught:
            ClassVectors.load(path, **rest)

        separator = "" if message.startswith(":") else " "
        assert str(caught.value).startswith(f"class vectors '{path}'{separator}{message}")
        assert str(caught.value).endswith(f"; {remedy}")


def test_vectors_without_a_source_have_an_empty_one(tmp_path: Path) -> None:
    rewritten(tmp_path / "vectors.safetensors", {}, {"source": None})

    assert ClassVectors.load(tmp_path / "vectors.safetensors").source == ""


def test_missing_vectors_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="dvc repro class_vectors@dtd"):
        ClassVectors.load(tmp_path / "no", remedy="run `dvc repro class_vectors@dtd`")
    with pytest.raises(MissingFile) as caught:
        ClassVectors.load(tmp_path / "no")
    assert str(caught.value) == (
        f"class vectors not found: '{tmp_path / 'no'}'; build the class vectors first"
    )


def test_vectors_move_to_a_device_with_all_that_describes_them() -> None:
    made = vectors()

    moved = made.to("meta")

    assert moved.vectors.device.type == "meta"
    assert replace(moved, vectors=made.vectors) == made


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared data set, a teacher and the weights of its CLIP."""
    folder = tmp_path_factory.mktemp("class_vectors")
    tiny.prepared(folder / "prepare" / "flowers")
    towers = tiny.loaded("tiny", tiny.weights(folder))
    tuned = Teacher.untrained(towers, text_length=2, seed=3)
    tuned.save(folder / "teacher" / "flowers" / "teacher.safetensors")
    return folder


def run(stage: Path, out: Path, *, teacher: str = "flowers", **rest: Any) -> ClassVectors:
    with tiny.quick_stages("training.teacher.class_vectors"):
        return vectors_stage.run(
            stage / "prepare" / "flowers",
            stage / "teacher" / teacher,
            out,
            model="tiny",
            weights=stage / "tiny-0.safetensors",
            **rest,
        )


def test_the_stage_stores_the_vectors_of_the_tuned_teacher(stage: Path, tmp_path: Path) -> None:
    made = run(stage, tmp_path / "out")

    towers = tiny.loaded("tiny", stage / "tiny-0.safetensors")
    expected = build(Teacher.load(stage / "teacher/flowers/teacher.safetensors", towers), NAMES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["class_vectors.safetensors"]
    for vectors in (made, ClassVectors.load(tmp_path / "out" / "class_vectors.safetensors")):
        assert torch.equal(vectors.vectors, expected.vectors)
        assert vectors.names == NAMES
        assert vectors.logit_scale == expected.logit_scale
        assert vectors.source == "tiny (promptsrc)"


def test_the_stage_computes_on_one_thread_unless_told_otherwise(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def watched(teacher: Teacher, names: Sequence[str], **_: object) -> ClassVectors:
        used.append(torch.get_num_threads())
        torch.set_num_threads(1)  # which is quicker here
        return build(teacher, names)

    monkeypatch.setattr(vectors_stage, "build", watched)
    run(stage, tmp_path / "one")
    run(stage, tmp_path / "two", threads=2)

    assert used == [1, 2]


def test_the_stage_without_its_teacher_says_what_to_run(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="; run `dvc repro teacher@cars`$"):
        run(stage, tmp_path / "out", teacher="cars")

    assert not (tmp_path / "out").exists()


def test_template_features_are_means_of_unnormalised_frozen_features() -> None:
    templates = ["a photo of a {}.", "art of the {}."]

    ours = template_features(teacher(), NAMES, templates)

    text = towers().text
    for name, feature in zip(NAMES, ours, strict=True):
        plain = name.replace("_", " ")
        texts = towers().tokenize([f"a photo of a {plain}.", f"art of the {plain}."])
        torch.testing.assert_close(feature, text(texts).mean(dim=0), rtol=1e-4, atol=1e-5)
