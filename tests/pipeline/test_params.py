"""`params.yaml`: the shipped numbers, overrides, and errors of one line."""

import ast
import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from pd_core.cli import tune
from pd_core.core import options
from pd_core.core.errors import BadParams, MissingFile, PdError, UnknownName
from pd_core.data.acquire.sources import has_weights
from pd_core.data.catalog import embedded
from pd_core.data.catalog.catalogue import dataset_names
from pd_core.data.loading.splits import Protocol
from pd_core.mlops.registry import gate
from pd_core.models.model_table import model_rows
from pd_core.pipeline.stages.params import Params, load_params

PROJECT = Path(__file__).parents[2]
QUICKSTART = PROJECT / "params.yaml"
PAPER = PROJECT / "paper" / "params.yaml"
_VIT_H = {
    "teacher.model": "ViT-H-14-quickgelu",
    "teacher.weights": "ViT-H-14-quickgelu.dfn5b.safetensors",
}
FOLLOW_UPS: dict[str, dict[str, Any]] = {
    "the_professor": {
        "student.further_teachers": [
            {"model": "EVA02-L-14", "weights": "EVA02-L-14.merged2b_s4b_b131k.safetensors"}
        ],
        "student.teacher_weighting": "confidence",
    },
    "vit_h_to_vit_b_32": {
        **_VIT_H,
        "student.model": "ViT-B-32-quickgelu",
        "student.weights": "ViT-B-32.pt",
    },
    "vit_h_to_mobileclip": {
        **_VIT_H,
        "student.model": "MobileCLIP-S2",
        "student.weights": "MobileCLIP-S2.datacompdr.safetensors",
        "student.trained": "norm_and_projector",
    },
}
"""Keys that differ from the paper's profile, by profile; weights without their folder."""


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
    variants = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
    photos = {name for name in dataset_names() if not name.startswith(embedded.PREFIX)}
    assert set(params.datasets) == photos - variants
    student = params.for_dataset("sun397").student
    assert (student.lr, student.epochs, student.batch_size) == (0.005, 20, 8)
    assert student.kd_weight == 1000
    assert (student.image_length, student.image_depth, student.temperature) == (4, 9, 1.0)
    teacher = params.for_dataset("sun397").teacher
    assert (teacher.lr, teacher.epochs, teacher.batch_size) == (0.0025, 20, 4)
    assert (teacher.text_loss_weight, teacher.image_loss_weight) == (25, 10)
    assert (teacher.gpa_mean, teacher.gpa_std) == (15, 1)
    assert (teacher.model, student.model) == ("ViT-L-14-quickgelu", "ViT-B-16-quickgelu")
    for name in ("fgvc_aircraft", "oxford_flowers", "dtd"):
        assert params.for_dataset(name).student.kd_weight == 200
    assert list(params.tuned_student) == list(params.datasets)
    assert load_params(QUICKSTART).tuned_student == {}


@pytest.mark.parametrize(("name", "expected"), FOLLOW_UPS.items())
def test_a_follow_up_changes_its_setting_and_nothing_else(
    name: str, expected: dict[str, Any]
) -> None:
    paper, follow_up = values(PAPER), values(PAPER.parent / name / "params.yaml")

    assert follow_up.pop("profile.name") == name
    assert {key: value for key, value in follow_up.items() if value != paper[key]} == expected


def test_the_professor_has_its_four_data_sets_and_the_others_the_papers_eleven() -> None:
    paper = load_params(PAPER).datasets
    for name in FOLLOW_UPS:
        datasets = load_params(PAPER.parent / name / "params.yaml").datasets
        names = {"caltech101", "dtd", "ucf101", "eurosat"} if name == "the_professor" else paper
        assert datasets == {dataset: paper[dataset] for dataset in names}


@pytest.mark.parametrize("name", FOLLOW_UPS)
def test_the_models_of_a_follow_up_can_be_trained_as_it_says(name: str) -> None:
    params, rows = load_params(PAPER.parent / name / "params.yaml"), model_rows()

    assert params.teacher.method in rows[params.teacher.model].teacher
    assert params.student.trained in rows[params.student.model].student


@pytest.mark.parametrize("name", FOLLOW_UPS)
def test_the_weights_of_a_follow_up_are_those_that_weights_fetch_has(name: str) -> None:
    path = PAPER.parent / name / "params.yaml"
    params = load_params(path)
    first, student = params.teacher, params.student
    clips = [(first.model, first.weights), (student.model, student.weights)]
    clips += [(each.model or "", each.weights) for each in student.further_teachers]
    for model, weights in clips:
        assert model in open_clip.list_models()
        assert weights is not None
        assert (path.parent / weights).parent.resolve() == PROJECT / "data" / "raw" / "weights"
        assert has_weights(Path(weights).name)


def values(path: Path) -> dict[str, Any]:
    """Return the parameters of a profile but its data sets, weights without their folder."""
    text = re.sub(r"(\.\./)+data/raw/weights/", "", path.read_text())
    blocks: dict[str, Any] = YAML(typ="safe").load(text)
    del blocks["datasets"], blocks["tuned_student"], blocks["profile"]["root"]
    return {
        f"{block}.{key}": value for block, keys in blocks.items() for key, value in keys.items()
    }


@pytest.mark.parametrize(
    "path", [QUICKSTART, PAPER, *(PAPER.parent / name / "params.yaml" for name in FOLLOW_UPS)]
)
def test_every_number_has_its_source_in_a_comment(path: Path) -> None:
    bare = [
        line
        for line in path.read_text().splitlines()
        if re.match(r"(?!    weights: )\s*\w+: .*\d", line) and "#" not in line
    ]

    assert bare == []


@pytest.mark.parametrize("path", [QUICKSTART, PAPER])
def test_both_files_have_the_papers_method(path: Path) -> None:
    params = load_params(path)

    assert params.prepare.unlabelled_per_class is None
    assert params.teacher.method is options.TeacherMethod.PROMPTSRC
    assert params.teacher.original is None
    student = params.student
    assert student.form is options.Form.LOGITS_KL
    assert student.trained is options.Trained.PROMPTS_AND_PROJECTOR
    assert student.text_features is options.TextFeatures.TEACHER
    assert student.projector_layers == 2
    assert student.further_teachers == ()
    assert student.teacher_weighting is options.TeacherWeighting.EQUAL
    assert student.selection is options.Selection.LAST
    assert (student.temperature, student.kd_weight) == (1.0, 1000)


def test_the_baseline_has_the_teachers_numbers_and_the_students_clip(edited: Edited) -> None:
    edited(r"original:  ", f"original: {{path: a, sha256: {'a1' * 32}}}")
    wanted = "tuned_student: {embedded_digits: {lr: 0.5}, embedded_latin: {model: tiny}}"
    edited.path.write_text(edited.path.read_text().replace("tuned_student: {}", wanted))
    params = load_params(edited.path)

    digits = params.for_dataset("embedded_digits")
    given = {"model": digits.student.model, "weights": digits.student.weights, "original": None}
    assert digits.tuned_student == digits.teacher.model_copy(update={**given, "lr": 0.5})
    latin = params.for_dataset("embedded_latin").tuned_student
    assert latin is not None
    assert latin.model == "tiny"
    assert params.for_dataset("embedded_greek").tuned_student is None


def test_the_baseline_is_tuned_even_where_the_teacher_is_not(edited: Edited) -> None:
    path = edited(r"method: promptsrc", "method: clip")
    path.write_text(
        path.read_text().replace("tuned_student: {}", "tuned_student: {embedded_greek: {}}")
    )

    greek = load_params(path).for_dataset("embedded_greek")

    assert greek.tuned_student is not None
    assert (greek.teacher.method, greek.tuned_student.method) == ("clip", "promptsrc")


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


OWN = "my_parts: {prepare: {own: {labelled: parts/labelled}}, teacher: {}, student: {}}"


def test_own_pictures_are_a_data_set_with_labels_of_all_classes(edited: Edited) -> None:
    params = load_params(edited(r"^  embedded_latin: .*", f"  {OWN}"))

    own = params.for_dataset("my_parts").prepare
    assert own.own is not None
    assert (own.own.labelled, own.own.unlabelled, own.own.test) == ("parts/labelled", None, None)
    assert own.protocol is Protocol.ALL_CLASSES
    assert params.for_dataset("embedded_greek").prepare.protocol is Protocol.BASE_TO_NOVEL
    row = OWN.replace("{own:", "{protocol: base_to_novel, own:")
    half = load_params(edited(r"^  embedded_latin: .*", f"  {row}")).for_dataset("my_parts")
    assert half.prepare.protocol is Protocol.BASE_TO_NOVEL


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"seed: \d+", "seed: one", 'run.seed = "one": .*valid integer'),
        (r"shots: 16", "shots: 0", "prepare.shots = 0: .*greater than or equal to 1"),
        (r"shots: 16", "shotz: 16", "'prepare.shotz'; did you mean 'shots'"),
        (
            r"^  shots: 16",
            "  #",
            "missing; add `shots: 16` to the block `prepare`$",
        ),
        (
            r"^  metric: \S+",
            "  #",
            "add `metric: accuracy` to the block `promotion`$",
        ),
        (r"^  lr: \S+", "  #", "teacher.lr is missing; add it$"),
        (r"epochs: \d+", "epochs: true", "teacher.epochs = true: .*valid integer"),
        (r"flip: false", "flip: 0", "teacher.flip = 0: .*boolean"),
        (r"kd_weight: \S+", "kd_weight: .nan", "student.kd_weight = NaN: .*finite"),
        (
            r"crop_scale:.*\n  - 0.85\n  - 1.0",
            "crop_scale: [0.9, 0.5]",
            "0 < least <= largest <= 1",
        ),
        (r"precision: fp32", "precision: fp23", "'fp32', 'bf16' or 'fp16'"),
        (r"device: cpu", "device: gpu", 'run.device = "gpu": give auto, cpu'),
        (r"template: .*", "template: a photo", "where the class name goes"),
        (r"^evaluate:", "evaluat:", "'evaluat'; did you mean 'evaluate'"),
        (r"^class_vectors: \{\}", "class_vectors: {size: 1}", "'class_vectors.size'; known: none"),
        (
            r"embedded_latin: .*",
            "embedded_latin: {student: {lrr: 1}}",
            "student.lrr'; did you mean",
        ),
        (r"embedded_latin: .*", "embedded_latin: {studnt: {lr: 1}}", "did you mean 'student'"),
        (r"embedded_latin: .*", "embedded_latin:", "embedded_latin = null: give a block"),
        (r"form: \S+", "form: kl", "student.form = \"kl\": .*'logits_kl', 'features_l1' or"),
        (r"projector_layers: 2", "projector_layers: 4", "projector_layers = 4: .* equal to 3"),
        (r"original:  ", "original: {path: a, sha256: 1f}", 'sha256 = "1f": .*match'),
        (r"original:  ", "original: {path: a, sha: 1f}", "original.sha'.*known: path, sha256$"),
        (
            r"further_teachers: \[\]",
            "further_teachers: [{foldr: data/teacher/a}]",
            "'student.further_teachers.0.foldr'; did you mean 'folder'",
        ),
        (
            r"tuned_student: \{\}",
            "tuned_student: {embedded_latin: {lrr: 1}}",
            "'tuned_student.embedded_latin.lrr'; did you mean 'lr'",
        ),
        (
            r"embedded_latin: .*",
            OWN.replace("my_parts", "dtd"),
            "datasets.dtd has pictures of your own: give it a name .* not in the catalogue",
        ),
        (r"embedded_latin: .*", OWN.replace("my_parts", "my-parts"), "letters, digits and"),
        (r"folds: 4", "folds: 1", "evaluate.folds = 1: .*greater than or equal to 2"),
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


def test_unknown_data_sets_are_refused_with_a_guess(edited: Edited) -> None:
    guess = "'embedded_latni'; did you mean 'embedded_latin'"
    with pytest.raises(UnknownName, match=guess):
        load_params(QUICKSTART).for_dataset("embedded_latni")
    for pattern, replacement in (
        ("embedded_latin:", "embedded_latni:"),
        (r"tuned_student: \{\}", "tuned_student: {embedded_latni: {}}"),
    ):
        path = edited(pattern, replacement)
        with pytest.raises(UnknownName, match=guess) as caught:
            load_params(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "- 1\n", "text\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MissingFile if content is None else PdError, match=r"params\.yaml"):
        load_params(path)


def keys(model: type[BaseModel], block: str = "") -> Iterator[tuple[str, str]]:
    """Yield the file's keys as pairs of block and key."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, name)
        elif block:
            yield block, name


KEYS = list(keys(Params))
CHOICES = [
    (block, key, kind)
    for block, key in KEYS
    if (fields := Params.model_fields[block].annotation)
    and isinstance(kind := fields.model_fields[key].annotation, type)
    and issubclass(kind, StrEnum)
]


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        (block, key, value)
        for block, key, kind in CHOICES
        for value in kind
        if not (isinstance(value, Protocol) and value.has_source)
    ],
)
def test_every_named_choice_is_accepted(
    edited: Edited, block: str, key: str, value: StrEnum
) -> None:
    path = edited(rf"(^{block}:.*\n(?:  .*\n)*?  {key}:) \S+", rf"\g<1> {value.value}")

    assert getattr(getattr(load_params(path), block), key) is value


@pytest.mark.parametrize("protocol", [protocol for protocol in Protocol if protocol.has_source])
def test_a_protocol_that_needs_a_source_is_refused_with_the_place_to_run_it(
    edited: Edited, protocol: Protocol
) -> None:
    wanted = f"= {protocol} needs a source; give base_to_novel or all_classes, and run it in proto"
    with pytest.raises(BadParams, match=f"prepare.protocol {wanted}"):
        load_params(edited(r"protocol: \S+", f"protocol: {protocol}"))
    row = f"embedded_greek: {{prepare: {{protocol: {protocol}}}"
    with pytest.raises(BadParams, match=f"datasets.embedded_greek.prepare.protocol {wanted}"):
        load_params(edited(r"embedded_greek: \{prepare: \{\}", row))


def test_every_kind_of_choice_has_a_key() -> None:
    kinds = {kind for _, kind in inspect.getmembers(options, inspect.isclass)} - {StrEnum}

    assert {kind for _, _, kind in CHOICES} == kinds | {Protocol}


@pytest.mark.parametrize(("block", "key"), KEYS)
def test_every_key_reaches_its_stage(block: str, key: str) -> None:
    pipeline = (PROJECT / "dvc.yaml").read_text()

    if block == "prepare":
        assert ("config", key) in _reads()
    elif block == "promotion":
        assert key in inspect.signature(gate.Exam).parameters
    elif block == "search":
        assert key in [*tune.Stage]
    else:
        names = {"run": ("run", "compute"), "class_vectors": ()}.get(
            block, ("config", "_config", "evaluation", block)
        )
        assert {(name, key) for name in names} & _reads() or f"${{{block}.{key}}}" in pipeline


@cache
def _reads() -> set[tuple[str, str]]:
    """Return the pairs (block, key) that the code reads as ``block.key`` or ``x.block.key``."""
    reads = set()
    for file in (*PROJECT.glob("pd_core/**/*.py"), *PROJECT.glob("flows/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(ast.Name(block), key) | ast.Attribute(
                    ast.Attribute(_, block), key
                ):
                    reads.add((block, key))
    return reads
