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
from torch import Tensor

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
    assert (loaded.names, loaded.logit_scale, loaded.source) == (
        made.names,
        made.logit_scale,
        made.source,
    )
    assert '"ñandú"' in read_tensors(path)[1]["names"]


@pytest.mark.parametrize(
    ("left_out", "says"),
    [("names", "0 names and 5 vectors, of shape [5, 16], and 1 scales"),
     ("vectors", "5 names and 0 vectors, of shape [0, 0], and 1 scales"),
     ("logit_scale", "5 names and 5 vectors, of shape [5, 16], and 0 scales")],
)  # fmt: skip
def test_a_file_without_all_its_parts_is_refused(tmp_path: Path, left_out: str, says: str) -> None:
    path = tmp_path / "vectors.safetensors"
    vectors().save(path)
    tensors, metadata = read_tensors(path)
    for part in (tensors, metadata):
        part.pop(left_out, None)
    write_tensors(path, tensors, metadata)

    with pytest.raises(BadArtifact) as caught:
        ClassVectors.load(path, remedy="build them again")

    assert str(caught.value) == f"class vectors '{path}' hold {says}; build them again"


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"vectors": torch.ones(5)}, "of shape [5], and 1 scales; build"),
     ({"vectors": torch.ones(5, 4, 4)}, "of shape [5, 4, 4], and 1 scales; build"),
     ({"logit_scale": torch.ones(1)}, "of shape [5, 16], and 1 scales; build"),
     ({"vectors": torch.full((5, 16), torch.nan)}, "' has a tensor 'vectors' that is not")],
)  # fmt: skip
def test_tensors_that_are_no_vectors_and_scale_are_refused(
    tmp_path: Path, changed: dict[str, Tensor], says: str
) -> None:
    path = tmp_path / "vectors.safetensors"
    vectors().save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | changed, metadata)

    with pytest.raises(BadArtifact) as caught:
        ClassVectors.load(path)

    assert says in str(caught.value)
    assert str(caught.value).startswith(f"class vectors '{path}'")
    assert str(caught.value).endswith("build the class vectors first")


NO_TEXTS = "its names, which must be a list of strings"


@pytest.mark.parametrize(
    ("names", "wrong"),
    [('{"a": 1}', NO_TEXTS), ('["a", "b", "c", "d", 5]', NO_TEXTS), ("[", "Expecting value.*")],
)
def test_names_that_are_no_list_of_texts_are_refused(
    tmp_path: Path, names: str, wrong: str
) -> None:
    path = tmp_path / "vectors.safetensors"
    vectors().save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, metadata | {"names": names})

    says = f"^class vectors '{path}' is wrong at {wrong}; build the class vectors first$"
    with pytest.raises(BadArtifact, match=says):
        ClassVectors.load(path)


def test_vectors_whose_maker_is_not_told_have_an_empty_source(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    vectors().save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {"names": metadata["names"]})

    assert ClassVectors.load(path).source == ""


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
    with pytest.raises(MissingFile) as caught:
        ClassVectors.load(tmp_path / "no")
    assert str(caught.value) == (
        f"class vectors not found: '{tmp_path / 'no'}'; build the class vectors first"
    )


def test_vectors_move_to_a_device_with_all_that_describes_them() -> None:
    made = vectors()

    moved = made.to("meta")

    assert moved.vectors.device.type == "meta"
    assert (moved.names, moved.logit_scale, moved.source) == (
        made.names,
        made.logit_scale,
        made.source,
    )


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
