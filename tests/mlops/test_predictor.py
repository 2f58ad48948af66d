"""A student classifies an image of any kind, from the stage's folder or from a bundle."""

import base64
import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyStudent
from PIL import Image

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadArtifact, BadData, BadParams, MissingFile
from pd_core.data.loading.images import eval_transform
from pd_core.data.loading.prepared import write_prepared
from pd_core.mlops import bundle, predictor
from pd_core.mlops.registry import images as samples
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import load_clip
from pd_core.models.portable import pictures
from pd_core.models.student import Student
from pd_core.pipeline.provenance import content_hash


@pytest.fixture(scope="module")
def model(tiny_student: TinyStudent) -> predictor.Predictor:
    return predictor.load_student(tiny_student.folder, weights=tiny_student.weights)


def _bundle(tiny: TinyStudent, folder: Path) -> Path:
    student = predictor.load_student(tiny.folder, weights=tiny.weights).student
    bundle.write_student(folder, student, {"dataset": "greek"})
    return folder


def test_probabilities_are_the_softmax_of_the_scaled_cosines(
    tiny_student: TinyStudent, model: predictor.Predictor, picture: bytes
) -> None:
    towers = load_clip("embedded-student", tiny_student.weights)
    student = Student.load(tiny_student.folder / "student.safetensors", towers)
    vectors = ClassVectors.load(tiny_student.vectors)
    with Image.open(BytesIO(picture)) as image:
        view = eval_transform(towers.preprocess)(image.convert("RGB"))
    with torch.no_grad():
        cosines = student(view[None])[0] @ vectors.vectors.T
        expected = torch.softmax(towers.logit_scale * cosines, dim=0)
    ranking = model.classify(picture)
    order = expected.argsort(descending=True).tolist()
    assert [name for name, _ in ranking] == [vectors.names[label] for label in order]
    assert [value for _, value in ranking] == pytest.approx(expected[order].tolist(), abs=1e-6)


def test_every_kind_of_image_gives_the_same_ranking(
    model: predictor.Predictor, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture)
    text = base64.b64encode(picture).decode()
    with Image.open(path) as image:
        image.load()
    kinds: list[Any] = [
        picture,
        path,
        str(path),
        text,
        f"data:image/png;base64,{text}",
        np.asarray(image),
        image,
    ]
    expected = model.classify(picture)
    for kind in kinds:
        assert model.classify(kind) == expected, type(kind)


def test_images_are_classified_in_order_whatever_the_batch_size(
    model: predictor.Predictor,
) -> None:
    shades = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 60, 120, 180, 240)]
    together = model.classify_many(shades, top=3, batch_size=2)
    for shade, ranking in zip(shades, together, strict=True):
        assert dict(ranking) == pytest.approx(dict(model.classify(shade)), abs=1e-5)


def test_top_limits_the_names(model: predictor.Predictor, picture: bytes) -> None:
    assert len(model.classify(picture, top=2)) == 2
    ranking = model.classify(picture, top=99)
    assert {name for name, _ in ranking} == set(model.names) == {"alpha", "beta", "gamma"}
    assert sum(value for _, value in ranking) == pytest.approx(1)
    with pytest.raises(BadParams, match="top = 0"):
        model.classify(picture, top=0)


@pytest.mark.parametrize(
    "junk",
    [b"", b"\x89PNG\r\n", "no such file", "x" * 5000, "a\0b", np.zeros(3), 42, None],
    ids=["nothing", "head only", "words", "long text", "zero byte", "no image", "number", "none"],
)
def test_an_unreadable_image_is_refused_in_one_line(model: predictor.Predictor, junk: Any) -> None:
    with pytest.raises(BadData, match="cannot be read") as caught:
        model.classify(junk)
    assert len(str(caught.value)) < 400


def test_a_truncated_and_a_missing_file_are_refused_by_name(
    model: predictor.Predictor, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(picture[: len(picture) // 2])
    with pytest.raises(BadData, match=r"cut\.png"):
        model.classify(path)
    with pytest.raises(MissingFile, match=r"gone\.png"):
        model.classify(tmp_path / "gone.png")


def test_a_bundle_is_reproducible_and_gives_the_rankings_of_the_stages_folder(
    tiny_student: TinyStudent, model: predictor.Predictor, picture: bytes, tmp_path: Path
) -> None:
    first, second = (_bundle(tiny_student, tmp_path / name) for name in ("first", "second"))
    assert content_hash(first) == content_hash(second)
    assert {path.name for path in first.iterdir()} == {"model.json", "student.safetensors"}
    assert predictor.load_student(first).classify(picture) == model.classify(picture)


def test_a_folder_without_a_student_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="dvc repro student@greek"):
        predictor.load_student(tmp_path / "greek")


def test_a_copied_folder_needs_the_class_vectors_in_it(
    tiny_student: TinyStudent, model: predictor.Predictor, picture: bytes, tmp_path: Path
) -> None:
    """`dvc get` copies the outputs of stages, one at a time."""
    copy = Path(shutil.copytree(tiny_student.folder, tmp_path / "greek"))
    file = "data/class_vectors/greek/class_vectors.safetensors"
    with pytest.raises(MissingFile, match=f"dvc get <repository> {file} -o {copy}"):
        predictor.load_student(copy, weights=tiny_student.weights)
    shutil.copy(tiny_student.vectors, copy)
    copied = predictor.load_student(copy, weights=tiny_student.weights)
    assert copied.classify(picture) == model.classify(picture)


def test_class_vectors_of_another_width_are_refused(
    tiny_student: TinyStudent, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.safetensors"
    ClassVectors(("alpha",), torch.ones(1, 8), 30.0, "other").save(wide)
    with pytest.raises(BadArtifact, match="8 .* 16"):
        predictor.load_student(tiny_student.folder, vectors=wide, weights=tiny_student.weights)


SPLIT: dict[str, Any] = {
    "dataset": "greek",
    "classes": ["alpha"],
    "base_classes": 1,
    "protocol": "all_classes",
    **dict.fromkeys(("few_shot", "few_shot_val", "val", "test"), []),
}


def test_the_example_is_a_small_image_of_the_test_list(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, shade in (("train.png", 0), ("test.png", 90)):
            file = BytesIO()
            Image.new("RGB", (800, 400), (shade, 0, 0)).save(file, format="PNG")
            archive.writestr(name, file.getvalue())
    lists = {"few_shot": [["train.png", 0]], "test": [["test.png", 0]]}
    split = {**SPLIT, **lists, "images": "images.zip"}
    (tmp_path / "split.json").write_text(json.dumps(split))
    write_sums(tmp_path)
    with Image.open(BytesIO(samples.example_image(tmp_path))) as image:
        assert (image.size, image.getpixel((0, 0))) == ((336, 168), (90, 0, 0))


def test_the_example_is_a_readable_image_even_without_a_test_list(tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"<html>")
    Image.new("RGB", (40, 20), (90, 0, 0)).save(tmp_path / "whole.png")
    split = {**SPLIT, "images": str(tmp_path)}
    write_prepared(tmp_path, split, ["damaged.png", "whole.png"])
    with Image.open(BytesIO(samples.example_image(tmp_path))) as image:
        assert image.getpixel((0, 0)) == (90, 0, 0)
    write_prepared(tmp_path, split, ["damaged.png"])
    with pytest.raises(BadData, match="damaged.png"):
        samples.example_image(tmp_path)


def test_sixteen_bits_of_grey_are_scaled_as_in_training() -> None:
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert pictures.read(deep).getpixel((0, 0)) == (128, 128, 128)
