import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from pd_core.data import embedded
from pd_core.data.catalogue import dataset_names
from pd_core.data.splits import Protocol
from pd_core.errors import BadParams, MissingFile, PdError, UnknownName
from pd_core.params import MethodName, Params, PrecisionName, load_params

PROJECT = Path(__file__).parent.parent
QUICKSTART = PROJECT / "params.yaml"
PAPER = PROJECT / "paper" / "params.yaml"


@pytest.fixture
def edited(tmp_path: Path) -> "Edited":
    return Edited(tmp_path / "params.yaml")


class Edited:
    """The shipped file with one piece of text replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, pattern: str, replacement: str) -> Path:
        text, count = re.subn(pattern, replacement, QUICKSTART.read_text(), count=1, flags=re.M)
        assert count == 1
        self.path.write_text(text)
        return self.path


def test_the_shipped_file_has_the_eleven_embedded_data_sets() -> None:
    params = load_params(QUICKSTART)

    assert params.profile.name == "quickstart"
    assert list(params.datasets) == list(embedded.DOMAINS)
    assert params.for_dataset("embedded_digits").prepare.protocol is Protocol.BASE_TO_NOVEL


def test_the_papers_file_has_its_eleven_data_sets_and_its_numbers() -> None:
    params = load_params(PAPER)

    assert params.profile.name == "paper"
    assert set(params.datasets) == set(dataset_names()) - set(embedded.DOMAINS)
    student = params.for_dataset("sun397").student
    assert (student.lr, student.epochs, student.batch_size, student.kd_weight) == (
        0.005,
        20,
        8,
        1000,
    )
    assert (student.image_length, student.image_depth, student.temperature) == (4, 9, 1.0)
    teacher = params.for_dataset("sun397").teacher
    assert (teacher.lr, teacher.epochs, teacher.batch_size) == (0.0025, 20, 4)
    assert (teacher.text_loss_weight, teacher.image_loss_weight) == (25, 10)
    assert (teacher.gpa_mean, teacher.gpa_std) == (15, 1)
    assert (teacher.model, student.model) == ("ViT-L-14-quickgelu", "ViT-B-16-quickgelu")


@pytest.mark.parametrize("name", ["fgvc_aircraft", "oxford_flowers", "dtd"])
def test_three_data_sets_of_the_paper_have_a_smaller_weight(name: str) -> None:
    assert load_params(PAPER).for_dataset(name).student.kd_weight == 200


@pytest.mark.parametrize("path", [QUICKSTART, PAPER])
def test_every_number_has_its_source_in_a_comment(path: Path) -> None:
    bare = [
        line
        for line in path.read_text().splitlines()
        if re.match(r"\s*\w+: .*\d", line) and "#" not in line
    ]

    assert bare == []


def test_an_override_changes_its_data_set_only(edited: Edited) -> None:
    path = edited(
        r"embedded_latin: .*", "embedded_latin: {student: {lr: 0.5}, teacher: {epochs: 3}}"
    )
    before, after = load_params(QUICKSTART), load_params(path)

    latin = after.for_dataset("embedded_latin")
    assert (latin.student.lr, latin.teacher.epochs) == (0.5, 3)
    unchanged = before.for_dataset("embedded_latin").student.model_dump() | {"lr": 0.5}
    assert latin.student.model_dump() == unchanged
    for name in set(after.datasets) - {"embedded_latin"}:
        assert after.for_dataset(name) == before.for_dataset(name)


def test_parameters_cannot_be_changed() -> None:
    params = load_params(QUICKSTART)

    with pytest.raises(ValidationError, match="frozen"):
        params.run.seed = 2  # type: ignore[misc]


def test_a_number_may_be_written_as_dvc_writes_it(edited: Edited) -> None:
    path = edited(r"warmup_lr: \S+", "warmup_lr: 1e-05")

    assert load_params(path).teacher.warmup_lr == 1e-5


def test_a_data_set_that_the_file_does_not_list_is_refused() -> None:
    with pytest.raises(UnknownName, match="'embedded_latn'; did you mean 'embedded_latin'"):
        load_params(QUICKSTART).for_dataset("embedded_latn")


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"seed: \d+", "seed: one", 'run.seed = "one": .*valid integer'),
        (r"shots: 16", 'shots: "16"', 'prepare.shots = "16": .*valid integer'),
        (r"shots: 16", "shots: 0", "prepare.shots = 0: .*greater than or equal to 1"),
        (r"shots: 16", "shotz: 16", "'prepare.shotz'; did you mean 'shots'"),
        (r"^  shots: 16", "  #", "prepare.shots is missing"),
        (r"epochs: \d+", "epochs: 10.0", "teacher.epochs = 10.0: .*valid integer"),
        (r"epochs: \d+", "epochs: true", "teacher.epochs = true: .*valid integer"),
        (r"flip: false", "flip: 0", "teacher.flip = 0: .*boolean"),
        (r"kd_weight: \S+", "kd_weight: -1", "student.kd_weight = -1: .*greater than 0"),
        (r"kd_weight: \S+", "kd_weight: .nan", "student.kd_weight = NaN: .*finite"),
        (r"crop_scale: \[.*\]", "crop_scale: [0.9, 0.5]", "0 < least <= largest <= 1"),
        (r"crop_scale: \[.*\]", "crop_scale: 0.5", "teacher.crop_scale = 0.5"),
        (r"precision: fp32", "precision: fp23", "'fp32', 'bf16' or 'fp16'"),
        (r"base_to_novel", "base2novel", "'base_to_novel' or 'all_classes'"),
        (r"device: cpu", "device: gpu", 'run.device = "gpu": give cpu'),
        (r"template: .*", "template: a photo", "where the class name goes"),
        (r"^evaluate:", "evaluat:", "'evaluat'; did you mean 'evaluate'"),
        (r"^class_vectors: \{\}", "class_vectors: {size: 1}", "'class_vectors.size'; known: none"),
        (
            r"embedded_latin: .*",
            "embedded_latin: {student: {lrr: 1}}",
            "student.lrr'; did you mean",
        ),
        (r"embedded_latin: .*", "embedded_latin: {studnt: {lr: 1}}", "did you mean 'student'"),
        (
            r"embedded_latin: .*",
            "embedded_latin: {student: {lr: fast}}",
            'datasets.embedded_latin.student.lr = "fast": .*valid number',
        ),
        (r"embedded_latin: .*", "embedded_latin: {student: 3}", "student = 3: give a block"),
        (r"embedded_latin: .*", "embedded_latin:", "embedded_latin = null: give a block"),
        (r"shots: 16", "shots: 16\n  shots: 8", "not YAML .*duplicate key"),
        (r"shots: 16", "shots: [16", "not YAML"),
    ],
)
def test_a_mistake_gets_one_line_with_file_key_value_and_remedy(
    edited: Edited, pattern: str, replacement: str, message: str
) -> None:
    path = edited(pattern, replacement)

    with pytest.raises(BadParams, match=message) as caught:
        load_params(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_in_no_catalogue_is_refused(edited: Edited) -> None:
    path = edited("embedded_latin:", "embedded_latni:")

    with pytest.raises(UnknownName, match="'embedded_latni'; did you mean 'embedded_latin'"):
        load_params(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", ["", "- 1\n", "text\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)

    with pytest.raises(PdError, match="holds no keys"):
        load_params(tmp_path / "params.yaml")


def test_names_of_precisions_and_methods_are_those_that_the_stages_know() -> None:
    from pd_core.models.compute import Precision
    from pd_core.models.teacher import TeacherMethod

    assert set(get_args(PrecisionName)) == {precision.value for precision in Precision}
    assert set(get_args(MethodName)) == {method.value for method in TeacherMethod}


def keys(model: type[BaseModel], block: str = "") -> Iterator[tuple[str, str]]:
    """All keys of the file below its blocks, as pairs of block and key."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, name)
        elif block:
            yield block, name


@pytest.mark.parametrize(("block", "key"), list(keys(Params)))
def test_every_key_is_read_by_code(block: str, key: str) -> None:
    pipeline = (PROJECT / "dvc.yaml").read_text()

    assert (block, key) in _reads() or f"${{{block}.{key}}}" in pipeline


def _reads() -> set[tuple[str, str]]:
    """Pairs (block, key) that occur as ``block.key`` or ``something.block.key`` in the code."""
    found = set()
    for file in (*PROJECT.glob("pd_core/**/*.py"), *PROJECT.glob("flows/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(ast.Name(block), key) | ast.Attribute(
                    ast.Attribute(_, block), key
                ):
                    found.add((block, key))
    return found
