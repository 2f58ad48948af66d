"""Checkpoints of the original code become our teachers and students; nothing in them is run."""

import contextlib
import importlib
import os
import re
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import checks
import pytest
import tiny
import torch
import traces
from torch import Tensor
from traces import Trace

from pd_core import class_vectors, distill
from pd_core.class_vectors import ClassVectors
from pd_core.errors import BadArtifact, MissingFile
from pd_core.models.clip import ClipTowers
from pd_core.models.original import import_student, import_teacher
from pd_core.models.prompts import encode_image, encode_text
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.models.unpickle import read_checkpoint
from pd_core.options import TeacherMethod

State = dict[str, Tensor]

PER_TRACE = pytest.mark.parametrize(
    "folder", traces.trace_folders(), ids=lambda folder: folder.name
)


def backbone(trace: Trace, clip: str, *, text: bool) -> State:
    """Return the frozen weights by the original's keys."""
    state = {}
    for key, value in trace.tensors.items():
        name = key.removeprefix(f"{clip}/")
        if name == key or name == "token_embedding.rows":
            continue
        if name.startswith("visual."):
            state[f"image_encoder.{name.removeprefix('visual.')}"] = value.float()
        elif name == "logit_scale":
            state[name] = value.float()
        elif text:
            state[f"text_encoder.{name}"] = value.float()
    return state


def under(trace: Trace, place: str) -> State:
    """Return what was recorded at a place, by the original's own keys."""
    return {
        key.removeprefix(place): value
        for key, value in trace.tensors.items()
        if key.startswith(place)
    }


def teacher_state(trace: Trace) -> State:
    frozen = backbone(trace, "clip_teacher", text=True)
    classes = len(trace.info["classnames"])
    length, width = trace.tensors["teacher/gpa/prompt_learner.ctx"].shape
    return {
        **under(trace, "teacher/gpa/"),
        "prompt_learner.token_prefix": torch.ones(classes, 1, width),
        "prompt_learner.token_suffix": torch.ones(classes, 76 - length, width),
        **{
            f"prompt_learner.ZS_{key}": value + 1
            for key, value in frozen.items()
            if key.startswith("image_encoder.")
        },
        **frozen,
    }


def student_state(trace: Trace) -> State:
    last = f"kd/step{trace.student_steps[-1]}/"
    return {
        **under(trace, last + "param/"),
        **under(trace, last + "bn/"),
        **backbone(trace, "clip_student", text=False),
    }


def tiny_state() -> State:
    """Make what the original saves of a teacher on the tiny CLIP: depth 3, length 2, width 32."""
    return {**tiny_prompts("text"), **tiny_prompts("image"), **tiny_backbone()}


def tiny_prompts(branch: str, *, depth: int = 3, length: int = 2, width: int = 32) -> State:
    rows = torch.randn(depth, length, width, generator=torch.Generator().manual_seed(depth))
    deeper = {traces.DEEPER[branch].format(i): rows[i].clone() for i in range(1, depth)}
    return {traces.INPUT[branch]: rows[0].clone(), **deeper}


def tiny_backbone() -> State:
    names = {"visual": "image_encoder", "text": "text_encoder", "logit_scale": "logit_scale"}
    state = {}
    for key, value in tiny.towers().weights().items():
        tower, dot, rest = key.partition(".")
        if key != "text.token_embedding.weight":
            state[names[tower] + dot + rest] = value.clone()
    return state


def tiny_projector(*, width: int = 16, feature_width: int = 24) -> State:
    conv = torch.nn.Conv2d
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = torch.nn.Sequential(
            conv(width, feature_width, 1),
            torch.nn.BatchNorm2d(feature_width),
            torch.nn.ReLU(),
            conv(feature_width, feature_width, 1),
        )
    return {traces.PROJECTOR + key: value for key, value in layers.state_dict().items()}


def tiny_student_state() -> State:
    frozen = {k: v for k, v in tiny_backbone().items() if not k.startswith("text_encoder.")}
    return {**tiny_prompts("image"), **tiny_projector(), **frozen}


def save(path: Path, state: Mapping[str, Any], *, protocol: int = 2, **replaced: Any) -> Path:
    """Write a checkpoint as Dassl does: a scheduler and an optimiser beside the weights."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    module = types.ModuleType("dassl_scheduler")
    scheduler_class = type("ConstantWarmupScheduler", (), {"__module__": module.__name__})
    module.__dict__["ConstantWarmupScheduler"] = scheduler_class
    scheduler = scheduler_class()
    scheduler.optimizer = optimizer
    scheduler.successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    ordered = OrderedDict(state)
    ordered._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    content = {
        "state_dict": ordered,
        "epoch": 20,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": scheduler},
        "val_result": 81.5,
        **replaced,
    }
    sys.modules[module.__name__] = module
    try:
        torch.save(content, path, pickle_protocol=protocol)
    finally:
        del sys.modules[module.__name__]
    return path


def known_vectors(trace: Trace) -> ClassVectors:
    scale = trace.teacher_towers.logit_scale
    names = tuple(trace.info["classnames"])
    return ClassVectors(names, trace.tensors["class_vectors"], scale, "recorded")


def refused(make: Callable[..., Any], path: Path, towers: ClipTowers, **rest: Any) -> str:
    """Return the message of a refusal, which is one line and names the file."""
    with pytest.raises(BadArtifact) as caught:
        make(path, towers, **rest)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@PER_TRACE
def test_an_imported_teacher_gives_the_originals_numbers(folder: Path, tmp_path: Path) -> None:
    trace = traces.load(folder)
    path = save(tmp_path / "model.pth.tar-20", teacher_state(trace))

    found = import_teacher(path, trace.teacher_towers)

    teacher, differences = found.model, checks.Differences()
    assert found.notes == ()
    assert not teacher.training
    assert teacher.method is TeacherMethod.PROMPTSRC
    ours = class_vectors.build(teacher, trace.info["classnames"]).vectors
    recorded = trace.tensors["class_vectors"]
    differences.add("class vectors", "all", ours, recorded, checks.CLASS_VECTORS)
    with torch.no_grad():
        for part in {key.split("/")[0] for key in trace.info["eval"]}:
            images = trace.tensors[f"eval/{part}/image"]
            logits = distill.teacher_logits(teacher, images, known_vectors(trace))
            recorded = trace.tensors[f"eval/{part}/teacher_logits_all"]
            differences.add("teacher evaluation logits", part, logits, recorded, checks.LOGITS)
    differences.verify()


@PER_TRACE
def test_an_imported_student_gives_the_originals_numbers(folder: Path, tmp_path: Path) -> None:
    trace = traces.load(folder)
    path = save(tmp_path / "model.pth.tar-20", student_state(trace))
    known = known_vectors(trace)

    found = import_student(path, trace.student_towers, feature_width=known.vectors.shape[1])

    student, differences = found.model, checks.Differences()
    assert found.notes == ()
    assert not student.training
    with torch.no_grad():
        for key, result in trace.info["eval"].items():
            part, state = key.split("/")
            if state != "last":
                continue
            first = len(known.names) - result["n_classes"] if part == "novel" else 0
            chosen = known.select(range(first, first + result["n_classes"]))
            features = student(trace.tensors[f"eval/{part}/image"])
            logits = chosen.logits(features, logit_scale=student.logit_scale)
            recorded = trace.tensors[f"eval/{key}/logits"]
            differences.add("evaluation logits", key, logits, recorded, checks.EVALUATION)
    differences.verify()


def test_a_state_dict_alone_is_read(tmp_path: Path) -> None:
    torch.save(OrderedDict(tiny_state()), tmp_path / "state.pt")

    found = import_teacher(tmp_path / "state.pt", tiny.towers())

    assert_tiny_prompts(found.model)


def test_the_prefix_of_parallel_training_is_dropped(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in tiny_state().items()}

    found = import_teacher(save(tmp_path / "a.tar", state), tiny.towers())

    assert_tiny_prompts(found.model)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    path = save(tmp_path / "a.tar", tiny_state(), protocol=protocol)

    assert_tiny_prompts(import_teacher(path, tiny.towers()).model)


def test_parameters_are_taken_for_tensors(tmp_path: Path) -> None:
    state = {key: torch.nn.Parameter(value) for key, value in tiny_state().items()}

    found = import_teacher(save(tmp_path / "a.tar", state), tiny.towers())

    assert_tiny_prompts(found.model)
    assert type(read_checkpoint(tmp_path / "a.tar")["state_dict"]["logit_scale"]) is Tensor


def assert_tiny_prompts(teacher: Teacher) -> None:
    for branch, prompts in (("text", teacher.text_prompts), ("image", teacher.image_prompts)):
        assert prompts is not None
        expected = torch.stack(list(tiny_prompts(branch).values()))
        assert torch.equal(prompts.tokens, expected)


def test_half_precision_of_the_same_frozen_weights_is_no_difference(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in tiny_state().items()}

    found = import_teacher(save(tmp_path / "a.tar", state), tiny.towers())

    assert found.notes == ()
    assert found.model.towers.changes == {}
    assert found.model.state_dict()["image_prompts.tokens"].dtype == torch.float32
    rows = torch.stack(list(tiny_prompts("image").values())).half().float()
    assert torch.equal(found.model.state_dict()["image_prompts.tokens"], rows)


def test_frozen_weights_that_differ_are_used_and_reported(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in tiny_state().items()}
    state["image_encoder.VPT"] = state["image_encoder.VPT"].float()
    state["image_encoder.ln_post.bias"] += 0.5
    state["text_encoder.text_projection"][0, 0] += 0.25
    path = save(tmp_path / "a.tar", state)
    before = {key: value.clone() for key, value in tiny.towers().weights().items()}

    found = import_teacher(path, tiny.towers())

    count = len(tiny_backbone())
    assert found.notes == (
        f"2 of {count} frozen weights in '{path}' differ from those of model 'tiny', by up to"
        " 5.0e-01; the file's are used",
    )
    after, base = found.model.towers, tiny.towers()
    assert set(after.changes) == {"visual.ln_post.bias", "text.text_projection"}
    assert all(value.dtype == torch.float32 for value in after.changes.values())
    images, tokens = tiny.images(2), found.model.tokens(tiny.NAMES)
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

        found = import_teacher(path, tiny.towers())

        expected = float(torch.tensor(4.0).exp()) if changed else tiny.towers().logit_scale
        assert found.model.logit_scale == pytest.approx(expected, rel=1e-6)
        assert bool(found.notes) is changed
        assert bool(found.model.towers.changes) is changed


def test_a_file_without_frozen_weights_is_joined_to_the_model_and_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tar", {**tiny_prompts("text"), **tiny_prompts("image")})

    found = import_teacher(path, tiny.towers())

    assert found.notes == (f"no frozen weights in '{path}'; those of model 'tiny' are used",)
    assert found.model.towers is tiny.towers()


def test_an_imported_teacher_is_kept_like_any_other(tmp_path: Path) -> None:
    state = tiny_state()
    state["image_encoder.ln_post.bias"] += 0.25
    template = "a painting of a {}."
    found = import_teacher(save(tmp_path / "a.tar", state), tiny.towers(), template=template)

    found.model.save(tmp_path / "teacher.safetensors")
    loaded = Teacher.load(tmp_path / "teacher.safetensors", tiny.towers())

    assert loaded.template == template
    images = tiny.images(2)
    assert torch.equal(loaded.image_features(images), found.model.image_features(images))


def test_an_imported_student_is_kept_like_any_other(tmp_path: Path) -> None:
    state = tiny_student_state()
    state["image_encoder.ln_post.bias"] += 0.25
    found = import_student(save(tmp_path / "a.tar", state), tiny.towers())

    found.model.save(tmp_path / "student.safetensors")
    loaded = Student.load(tmp_path / "student.safetensors", tiny.towers())

    assert "1 of " in found.notes[0]
    assert torch.equal(loaded(tiny.images(2)), found.model(tiny.images(2)))


def test_a_half_precision_student_becomes_single_precision(tmp_path: Path) -> None:
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in tiny_student_state().items()
    }

    found = import_student(save(tmp_path / "a.tar", state), tiny.towers())

    assert found.notes == ()
    weights = found.model.projector.state_dict()
    assert weights["0.weight"].dtype == torch.float32
    expected = state[f"{traces.PROJECTOR}0.weight"].float()[:, :, 0, 0]
    assert torch.equal(weights["0.weight"], expected)
    assert found.model(tiny.images(2)).dtype == torch.float32


def test_importing_a_student_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tar", tiny_student_state())
    before = torch.random.get_rng_state()

    import_student(path, tiny.towers())

    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 4}, "{} prompts of depth 4 in .* but the {} tower of model 'tiny' has 3 layers"),
        (
            {"width": 48},
            "{} prompts of width 48 in .* model 'tiny' has width 32; set teacher.model",
        ),
    ],
)
def test_prompts_of_another_tower_are_refused(
    tmp_path: Path, branch: str, sizes: dict[str, int], message: str
) -> None:
    state = {**tiny_state(), **tiny_prompts(branch, **sizes)}

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, message.replace("{}", branch))


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(("size", "found", "expected"), [("depth", 2, 9), ("length", 2, 4)])
def test_prompts_that_are_not_as_expected_are_refused(
    tmp_path: Path, branch: str, size: str, found: int, expected: int
) -> None:
    state = {**tiny_prompts("text", depth=2), **tiny_prompts("image", depth=2)}
    path = save(tmp_path / "a.tar", state)
    name = f"{branch}_{size}"

    said = refused(import_teacher, path, tiny.towers(), **{name: expected})

    assert said == (
        f"{branch} prompts of {size} {found} in '{path}', but {name} = {expected};"
        f" set teacher.{name}: {found}"
    )
    assert import_teacher(path, tiny.towers(), **{name: found}).model  # type: ignore[arg-type]


def test_an_expected_depth_beyond_the_tower_means_all_its_layers(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher.tar", tiny_state())
    student = save(tmp_path / "student.tar", tiny_student_state())

    found = import_teacher(teacher, tiny.towers(), text_depth=9, image_depth=9)
    import_student(student, tiny.towers(), image_depth=9, image_length=2, feature_width=24)

    assert found.model.state_dict()["text_prompts.tokens"].shape == (3, 2, 32)


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: None}, "{} prompts in .* reach block 2, but those of block 1 .*VPT_shallow'.*missing"),
        ({0: None}, "{} prompts in .* reach block 2, but those of block 0 .*missing"),
        ({2: [3, 32]}, r"length and width \[2, 32\] at the input but \[3, 32\] at block 2"),
        ({0: [5, 2, 32]}, r"has shape \[5, 2, 32\]; expected \[length, width\]"),
        ({0: [0, 32]}, r"has shape \[0, 32\]; expected \[length, width\]"),
        ({0: None, 1: None, 2: None}, "no {} prompts in .*: neither '.*' nor '.*resblocks.N"),
    ],
)
def test_prompts_that_do_not_belong_together_are_refused(
    tmp_path: Path, branch: str, change: dict[int, list[int] | None], message: str
) -> None:
    state = tiny_state()
    for block, shape in change.items():
        key = traces.DEEPER[branch].format(block) if block else traces.INPUT[branch]
        del state[key]
        if shape is not None:
            state[key] = torch.zeros(shape)

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, message.replace("{}", branch))


def test_text_prompts_that_fill_all_positions_are_refused(tmp_path: Path) -> None:
    length = tiny.CONTEXT_LENGTH - 2
    for given, fits in ((length, False), (length - 1, True)):
        state = {**tiny_prompts("text", length=given), **tiny_prompts("image")}
        path = save(tmp_path / "a.tar", state)
        if fits:
            assert import_teacher(path, tiny.towers()).model
        else:
            said = refused(import_teacher, path, tiny.towers())
            assert_matches(said, "text prompts of length 22 .* in the 24 positions")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("prompt_learner.compound_prompts_text.0", [2, 32]),
        ("VPT_image_trans.conv1.0.weight", [24, 16, 1, 1]),
        ("image_encoder.transformer.resblocks.0.VPT_shallow", [2, 32]),
        ("image_encoder.transformer.resblocks.7.ln_1.weight", [32]),
        ("text_encoder.token_embedding", [32]),
    ],
)
def test_a_key_that_is_not_of_a_teacher_is_named(
    tmp_path: Path, key: str, shape: list[int]
) -> None:
    state = {**tiny_state(), key: torch.zeros(shape)}

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, f"^'{key}' in .* is no part of the original code's teacher")


def test_the_first_of_several_unknown_keys_is_named(tmp_path: Path) -> None:
    state = {"first": torch.zeros(1), **tiny_state(), "another": torch.zeros(1)}

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, "^'first' in ")


@pytest.mark.parametrize("key", ["prompt_learner.ctx", traces.DEEPER["text"].format(1)])
def test_a_teacher_is_no_student(tmp_path: Path, key: str) -> None:
    state = {**tiny_student_state(), key: torch.zeros(2, 32)}

    said = refused(import_student, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, f"^'{key}' in .* is no part of the original code's student")


def test_frozen_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    state = {**tiny_state(), "image_encoder.proj": torch.zeros(32, 20)}

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, r"'image_encoder.proj' .* shape \[32, 20\], .* 'tiny' has \[32, 16\]")


@pytest.mark.parametrize("key", ["prompt_learner.ctx", "image_encoder.ln_post.bias"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, key: str) -> None:
    state = tiny_state()
    state[key].view(-1)[0] = float("nan")

    said = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(said, f"'{key}' in .* not finite")


@pytest.mark.parametrize(
    ("change", "rest", "message"),
    [
        (tiny_projector(width=20), {}, "input width 20 in .*'tiny' have width 16; set student.mod"),
        ({}, {"feature_width": 32}, "output width 24 in .* the class vectors have width 32"),
        ({}, {"image_depth": 2}, "depth 3 in .* image_depth = 2; set student.image_depth: 3"),
        ({}, {"image_length": 5}, "length 2 in .* image_length = 5; set student.image_length: 2"),
        (tiny_prompts("image", width=48), {}, "width 48 in .* width 32; set student.model"),
        (tiny_prompts("image", depth=4), {}, "depth 4 in .* 3 layers"),
        (
            {f"{traces.PROJECTOR}1.weight": torch.ones(7)},
            {},
            "projector in .* does not fit: .*1.we",
        ),
        ({f"{traces.PROJECTOR}4.weight": torch.ones(7)}, {}, "does not fit: .*4.weight"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(
    tmp_path: Path, change: State, rest: dict[str, int], message: str
) -> None:
    path = save(tmp_path / "a.tar", {**tiny_student_state(), **change})

    assert_matches(refused(import_student, path, tiny.towers(), **rest), message)


@pytest.mark.parametrize("part", ["1.running_var", "0.weight", "3.weight"])
def test_a_student_without_a_part_of_its_projector_is_refused(tmp_path: Path, part: str) -> None:
    state = tiny_student_state()
    del state[traces.PROJECTOR + part]

    said = refused(import_student, save(tmp_path / "a.tar", state), tiny.towers())

    assert part in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="checkpoint not found: '.*none.tar'; give a file"):
        import_teacher(tmp_path / "none.tar", tiny.towers())
    with pytest.raises(MissingFile):
        read_checkpoint(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {1: torch.ones(1)},
        {"state_dict": [torch.ones(1)]},
        {"state_dict": {"prompt_learner.ctx": 3}},
        {"state_dict": {3: torch.ones(1)}},
        {"state_dict": {}},
        {"epoch": 3},
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.tar")

    refused(import_teacher, tmp_path / "a.tar", tiny.towers())


@pytest.mark.parametrize("content", [[1, 2], {1: 2}, 3], ids=str)
def test_a_file_without_named_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.tar")

    with pytest.raises(BadArtifact, match="is not a dictionary with names for keys"):
        read_checkpoint(tmp_path / "a.tar")


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.tar", tiny_state()).read_bytes()
    start = whole.index(b"prompt_learner.ctx")
    damaged = {
        "empty": b"",
        "page": b"<html>not found</html>",
        "head": whole[:100],
        "half": whole[: len(whole) // 2],
        "end": whole[:-30],
        "pickle": whole[:start] + b"\xff" * 40 + whole[start + 40 :],
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)

        refused(import_teacher, path, tiny.towers())


def test_a_record_that_is_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tar", tiny_state())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size).filename
    rewrite(path, {largest: b"\0" * 8})

    assert_matches(refused(import_teacher, path, tiny.towers()), "cannot be read .*size")


def rewrite(path: Path, records: Mapping[str, bytes]) -> None:
    """Replace records of a zip file, or add them."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**old, **records}.items():
            archive.writestr(name, content)


def assert_matches(message: str, pattern: str) -> None:
    assert re.search(pattern, message), message


# Files that do harm when they are read without care.


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call

    def __call__(self) -> None:
        """Stand for what the call returns, where pickle wants something to call."""


class Restored:
    """Runs when its state is restored."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["marker"].touch()


class HarmfulStorage(Restored):
    """Has a name that torch's own reader treats in a special way."""


class Appended(list[Path]):
    """Runs when a list is filled."""

    def append(self, item: Path) -> None:
        item.touch()

    def extend(self, items: Iterable[Path]) -> None:
        for item in items:
            item.touch()


class Filled(dict[str, Path]):
    """Runs when a dictionary is filled."""

    def __setitem__(self, key: str, value: Path) -> None:
        value.touch()


class Made:
    """Runs when it is made."""

    def __new__(cls, marker: Path, *, touch: bool = True) -> "Made":
        if touch:
            marker.touch()
        made = super().__new__(cls)
        made.marker = marker
        return made

    marker: Path

    def __getnewargs__(self) -> tuple[Path]:
        return (self.marker,)


BOMBS: dict[str, Callable[[Path], object]] = {
    "os.system": lambda marker: Call(os.system, f"touch '{marker}'"),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w').close()"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w').close()"),
    "getattr": lambda marker: Call(Call(getattr, Call(Path, marker), "touch")),
    "__setstate__": Restored,
    "a name with Storage": HarmfulStorage,
    "extend": lambda marker: Appended([marker]),
    "__setitem__": lambda marker: Filled(a=marker),
    "__new__": lambda marker: Made(marker, touch=False),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", BOMBS)
def test_nothing_in_a_hostile_file_is_run_and_its_weights_are_read(
    tmp_path: Path, name: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    harm = BOMBS[name](marker)
    path = save(
        tmp_path / "a.tar",
        tiny_state(),
        protocol=protocol,
        optimizer={"state": {0: {"momentum_buffer": harm}}, "param_groups": [harm]},
        scheduler=harm,
    )
    assert_harmful(path, marker)

    found = import_teacher(path, tiny.towers())

    assert not marker.exists()
    assert_tiny_prompts(found.model)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("place", ["state_dict", "weight", "everything"])
def test_a_hostile_object_in_place_of_weights_is_refused(
    tmp_path: Path, name: str, place: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.tar"
    harm = BOMBS[name](marker)
    match place:
        case "state_dict":
            save(path, {}, scheduler=None, state_dict=harm)
        case "weight":
            save(path, {**tiny_state(), "prompt_learner.ctx": harm}, scheduler=None)
        case _:
            torch.save(harm, path)
    assert_harmful(path, marker)

    refused(import_teacher, path, tiny.towers())

    assert not marker.exists()


def assert_harmful(path: Path, marker: Path) -> None:
    """Read a file as one should not, to know that it would run something."""
    torch.load(path, map_location="cpu", weights_only=False)
    assert marker.exists(), "this file does no harm"
    marker.unlink()


@pytest.mark.parametrize(
    "target",
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "UntypedStorage"),
    ],
    ids=lambda target: target[1],
)
def test_a_file_cannot_change_what_torch_is_made_of(
    tmp_path: Path, target: tuple[str, str]
) -> None:
    path, (module, name) = save(tmp_path / "a.tar", {}, scheduler=None), target
    real = getattr(importlib.import_module(module), name)
    # The object, a state (no attributes, {"planted": 7}), and the command to restore it.
    program = f"c{module}\n{name}\n(N}}X\x07\0\0\0plantedK\x07stb.".encode()
    rewrite(path, {"a/data.pkl": b"\x80\x02" + program})
    torch.load(path, weights_only=False)
    assert real.planted == 7, "this file does no harm"
    del real.planted

    with pytest.raises(BadArtifact):
        read_checkpoint(path)

    assert not hasattr(real, "planted")


@pytest.mark.parametrize(
    "known",
    [("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("any", "thing")],
    ids=lambda known: known[1],
)
def test_a_file_cannot_change_how_the_next_one_is_read(
    tmp_path: Path, known: tuple[str, str]
) -> None:
    path, (module, name) = save(tmp_path / "a.tar", {}, scheduler=None), known
    for attribute in ("_function", "planted", "append"):
        length = len(attribute).to_bytes(4, "little")
        # A dictionary with the object after it was given the attribute, with 7 for its value.
        program = b"".join(
            [b"\x80\x02}X\x01\0\0\0x", f"c{module}\n{name}\n".encode(), b"(N}X", length]
            + [attribute.encode(), b"K\x07stbs."]
        )
        rewrite(path, {"a/data.pkl": program})
        with contextlib.suppress(BadArtifact):
            assert getattr(read_checkpoint(path)["x"], attribute, None) != 7
    whole = save(tmp_path / "b.tar", tiny_state(), optimizer=[Appended([tmp_path])])

    assert_tiny_prompts(import_teacher(whole, tiny.towers()).model)


def test_methods_of_an_ordered_dictionary_cannot_be_hidden(tmp_path: Path) -> None:
    state = OrderedDict(tiny_state())
    for name in ("get", "keys", "values", "__iter__"):
        setattr(state, name, 3)
    torch.save(state, tmp_path / "a.tar")

    assert_tiny_prompts(import_teacher(tmp_path / "a.tar", tiny.towers()).model)


class Program(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_torchscript_archive_is_refused_before_torch_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive.tar"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        script: Any = torch.jit.script
        script(Program()).save(archive)
    marked = save(tmp_path / "marked.tar", tiny_state())
    rewrite(marked, {"marked/constants.pkl": b""})
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))

    for path in (archive, marked):
        assert_matches(refused(import_teacher, path, tiny.towers()), "is a TorchScript archive")


@pytest.mark.parametrize("end", [b"", b"a zip file"])
def test_the_legacy_format_is_refused(tmp_path: Path, end: bytes) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.tar"
    harm = BOMBS["os.system"](marker)
    torch.save({"state_dict": harm}, path, _use_new_zipfile_serialization=False)
    if end:  # then Python's zipfile takes the file for one, and torch does not
        end = save(tmp_path / "zip.tar", tiny_state()).read_bytes()
        path.write_bytes(path.read_bytes() + end)
    assert zipfile.is_zipfile(path) is bool(end)
    assert_harmful(path, marker)

    said = refused(import_teacher, path, tiny.towers())

    assert_matches(said, "is not a zip file.*save it again with torch >= 1.6")
    assert not marker.exists()


def test_a_file_is_read_by_what_is_in_it_whatever_its_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", tiny_state())

    assert_tiny_prompts(import_teacher(path, tiny.towers()).model)
