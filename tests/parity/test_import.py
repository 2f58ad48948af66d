"""Checkpoints of the original code become our teachers and students, number by number."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import checks
import pytest
import tiny
import torch
import traces
import trainings
from original_files import (
    PER_TRACE,
    PER_TUNED,
    assert_tiny_prompts,
    save,
    student_state,
    teacher_state,
    tiny_backbone,
    tiny_prompts,
    tiny_state,
    tiny_student_state,
)
from student_checks import recorded_vectors
from torch import Tensor

from pd_core.core.options import TeacherMethod
from pd_core.models import class_vectors
from pd_core.models.checkpoint_io import read_checkpoint
from pd_core.models.prompts import encode_image, encode_text
from pd_core.models.published_checkpoint import import_student, import_teacher
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

BIAS = "image_encoder.ln_post.bias"


@PER_TUNED
def test_an_imported_teacher_gives_the_originals_numbers(folder: Path, tmp_path: Path) -> None:
    trace = traces.load(folder)
    path = save(tmp_path / "model.pth.tar-20", teacher_state(trace))

    imported = import_teacher(path, trace.teacher_towers)

    teacher, differences = imported.model, checks.Differences()
    assert imported.notes == ()
    assert not teacher.training
    assert teacher.method is TeacherMethod.PROMPTSRC
    ours = class_vectors.build(teacher, trace.info["classnames"]).vectors
    recorded = trace.tensors["class_vectors"]
    differences.add("class vectors", "all", ours, recorded, checks.CLASS_VECTORS)
    with torch.no_grad():
        for part in {key.split("/")[0] for key in trace.info["eval"]}:
            images = trace.tensors[f"eval/{part}/image"]
            logits = trainings.live(teacher, recorded_vectors(trace)).logits(
                trainings.batch(images)
            )
            recorded = trace.tensors[f"eval/{part}/teacher_logits_all"]
            differences.add("teacher evaluation logits", part, logits, recorded, checks.LOGITS)
    differences.verify()


@PER_TRACE
def test_an_imported_student_gives_the_originals_numbers(folder: Path, tmp_path: Path) -> None:
    trace = traces.load(folder)
    path = save(tmp_path / "model.pth.tar-20", student_state(trace))
    vectors = recorded_vectors(trace)

    imported = import_student(path, trace.student_towers, feature_width=vectors.vectors.shape[1])

    student, differences = imported.model, checks.Differences()
    assert imported.notes == ()
    assert not student.training
    with torch.no_grad():
        for key, result in trace.info["eval"].items():
            part, state = key.split("/")
            if state != "last":
                continue
            first = len(vectors.names) - result["n_classes"] if part == "novel" else 0
            chosen = vectors.select(range(first, first + result["n_classes"]))
            features = student(trace.tensors[f"eval/{part}/image"])
            logits = chosen.logits(features, logit_scale=student.logit_scale)
            recorded = trace.tensors[f"eval/{key}/logits"]
            differences.add("evaluation logits", key, logits, recorded, checks.EVALUATION)
    differences.verify()


def parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.nn.Parameter(value) for key, value in state.items()}


def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("name", ["a.tar", "a.safetensors"])  # the content decides, not the name
@pytest.mark.parametrize("change", [dict, parameters, parallel])
@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])  # of pickle; 0 for a state dict alone
def test_every_form_of_a_checkpoint_is_read(
    tmp_path: Path, name: str, change: Any, protocol: int
) -> None:
    path, state = tmp_path / name, change(tiny_state())
    if protocol:
        save(path, state, protocol=protocol)
        stored = read_checkpoint(path)["state_dict"].values()
        assert {type(value) for value in stored} == {Tensor}
    else:
        torch.save(OrderedDict(state), path)

    assert_tiny_prompts(import_teacher(path, tiny.towers()).model)


def test_half_precision_of_the_same_frozen_weights_is_no_difference(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in tiny_state().items()}

    imported = import_teacher(save(tmp_path / "a.tar", state), tiny.towers())

    assert imported.notes == ()
    assert imported.model.towers.changes == {}
    assert imported.model.state_dict()["image_prompts.tokens"].dtype == torch.float32
    rows = torch.stack(list(tiny_prompts("image").values())).half().float()
    assert torch.equal(imported.model.state_dict()["image_prompts.tokens"], rows)


def test_frozen_weights_that_differ_are_used_and_reported(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in tiny_state().items()}
    state["image_encoder.VPT"] = state["image_encoder.VPT"].float()
    state["image_encoder.ln_post.bias"] += 0.5
    state["text_encoder.text_projection"][0, 0] += 0.25
    path = save(tmp_path / "a.tar", state)
    before = {key: value.clone() for key, value in tiny.towers().weights().items()}

    imported = import_teacher(path, tiny.towers())

    count = len(tiny_backbone())
    assert imported.notes == (
        f"2 of {count} frozen weights in '{path}' differ from those of model 'tiny', by up to"
        " 5.0e-01; the file's are used",
    )
    after, base = imported.model.towers, tiny.towers()
    assert set(after.changes) == {"visual.ln_post.bias", "text.text_projection"}
    assert all(value.dtype == torch.float32 for value in after.changes.values())
    images, tokens = tiny.images(2), imported.model.tokens(tiny.NAMES)
    bias = state["image_encoder.ln_post.bias"].float() - before["visual.ln_post.bias"]
    expected = encode_image(base.visual, images) + bias @ base.visual.proj
    torch.testing.assert_close(encode_image(after.visual, images), expected)
    assert not torch.allclose(encode_text(after.text, tokens), encode_text(base.text, tokens))
    for key, value in before.items():
        assert torch.equal(base.weights()[key], value), f"{key} of the base has changed"


def test_a_scale_that_differs_is_used_and_one_that_is_rounded_is_not(tmp_path: Path) -> None:
    state = tiny_state()
    rounded = state["logit_scale"] * (1 + 5e-7)
    for value, changed in ((rounded, False), (torch.tensor([4.0]), True)):
        path = save(tmp_path / "a.tar", {**state, "logit_scale": value})

        imported = import_teacher(path, tiny.towers())

        expected = float(torch.tensor(4.0).exp()) if changed else tiny.towers().logit_scale
        assert imported.model.logit_scale == pytest.approx(expected, rel=1e-6)
        assert bool(imported.notes) is changed
        assert bool(imported.model.towers.changes) is changed


def test_a_file_without_frozen_weights_is_joined_to_the_model_and_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tar", {**tiny_prompts("text"), **tiny_prompts("image")})

    imported = import_teacher(path, tiny.towers())

    assert imported.notes == (f"no frozen weights in '{path}'; those of model 'tiny' are used",)
    assert imported.model.towers is tiny.towers()


def test_imported_models_are_stored_like_any_other(tmp_path: Path) -> None:
    images, template = tiny.images(2), "a painting of a {}."
    path = save(tmp_path / "a.tar", tiny_state() | {BIAS: tiny_state()[BIAS] + 0.25})
    teacher = import_teacher(path, tiny.towers(), template=template).model
    path = save(tmp_path / "b.tar", tiny_student_state() | {BIAS: tiny_state()[BIAS] + 0.25})
    student = import_student(path, tiny.towers())

    teacher.save(tmp_path / "teacher")
    student.model.save(tmp_path / "student")
    loaded = Teacher.load(tmp_path / "teacher", tiny.towers())

    assert loaded.template == template
    assert torch.equal(loaded.image_features(images), teacher.image_features(images))
    assert "1 of " in student.notes[0]
    assert torch.equal(
        Student.load(tmp_path / "student", tiny.towers())(images), student.model(images)
    )


def test_a_half_precision_student_becomes_single_precision(tmp_path: Path) -> None:
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in tiny_student_state().items()
    }

    before = torch.random.get_rng_state()
    imported = import_student(save(tmp_path / "a.tar", state), tiny.towers())

    assert torch.equal(torch.random.get_rng_state(), before)
    assert imported.notes == ()
    weights = imported.model.projector.state_dict()
    assert weights["0.weight"].dtype == torch.float32
    expected = state[f"{traces.PROJECTOR}0.weight"].float()[:, :, 0, 0]
    assert torch.equal(weights["0.weight"], expected)
    assert imported.model(tiny.images(2)).dtype == torch.float32
