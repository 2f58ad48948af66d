"""Checkpoints that do not fit, or are damaged, are refused in one line."""

import zipfile
from pathlib import Path

import pytest
import tiny
import torch
import traces
from original_files import (
    State,
    assert_matches,
    refused,
    rewrite,
    save,
    tiny_projector,
    tiny_prompts,
    tiny_state,
    tiny_student_state,
)

from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.models.checkpoint_io import read_checkpoint
from pd_core.models.published_checkpoint import import_student, import_teacher


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 4}, "{} prompts of depth 4 .* but the {} tower of model 'tiny' has 3 layers"),
        (
            {"width": 48},
            "{} prompts .* width 48 in .* model 'tiny' has .* width 32; set teacher.model",
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

    with pytest.raises(BadArtifact, match="is not a dictionary with strings as keys"):
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
