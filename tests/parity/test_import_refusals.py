"""Checkpoints that do not fit, or are corrupt, are refused in one line."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import traces
from archive_files import rewrite
from original_files import (
    assert_matches,
    refused,
    save,
    tiny_projector,
    tiny_prompts,
    tiny_state,
    tiny_student_state,
)

from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.models.checkpoint_io import read_checkpoint
from pd_core.models.published_checkpoint import import_student, import_teacher

PROJECTOR = traces.PROJECTOR


def changed(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Replace or, for None, remove entries; a list is a shape."""
    for key, value in change.items():
        state.pop(key, None)
        if value is not None:
            state[key] = torch.zeros(value) if isinstance(value, list) else value
    return state


def blocks(branch: str, shapes: dict[int, list[int] | None]) -> dict[str, Any]:
    deeper, first = traces.DEEPER[branch], traces.INPUT[branch]
    return {deeper.format(block) if block else first: shape for block, shape in shapes.items()}


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 4}, "{} prompts of depth 4 .* {} tower of model 'tiny' has 3 layers"),
        ({"width": 48}, "{} prompts .* width 48 .* 'tiny' has .* width 32; set teacher.model"),
        ({1: None}, "{} prompts in .* reach block 2, but those of block 1 .*missing"),
        ({0: None}, "{} prompts in .* reach block 2, but those of block 0 .*missing"),
        ({2: [3, 32]}, r"length and width \[2, 32\] at the input but \[3, 32\] at block 2"),
        ({0: [5, 2, 32]}, r"has shape \[5, 2, 32\]; expected \[length, width\]"),
        ({0: [0, 32]}, r"has shape \[0, 32\]; expected \[length, width\]"),
        ({0: None, 1: None, 2: None}, "no {} prompts in .*: neither '.*' nor '.*resblocks.N"),
    ],
    ids=str,
)
def test_prompts_that_do_not_fit_are_refused(
    tmp_path: Path, branch: str, change: dict[Any, Any], message: str
) -> None:
    sized = {"depth", "width"} & set(change)
    new = tiny_prompts(branch, **change) if sized else blocks(branch, change)
    path = save(tmp_path / "a.tar", changed(tiny_state(), new))

    assert_matches(refused(import_teacher, path, tiny.towers()), message.replace("{}", branch))


@pytest.mark.parametrize("branch", ["text", "image"])
@pytest.mark.parametrize(("size", "actual", "expected"), [("depth", 2, 9), ("length", 2, 4)])
def test_prompts_that_are_not_as_expected_are_refused(
    tmp_path: Path, branch: str, size: str, actual: int, expected: int
) -> None:
    state = {**tiny_prompts("text", depth=2), **tiny_prompts("image", depth=2)}
    path, name = save(tmp_path / "a.tar", state), f"{branch}_{size}"

    message = refused(import_teacher, path, tiny.towers(), **{name: expected})

    assert_matches(message, f"{name} = {expected}; set teacher.{name}: {actual}$")
    assert import_teacher(path, tiny.towers(), **{name: actual}).model  # type: ignore[arg-type]


def test_an_expected_depth_beyond_the_tower_means_all_its_layers(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher.tar", tiny_state())
    student = save(tmp_path / "student.tar", tiny_student_state())

    imported = import_teacher(teacher, tiny.towers(), text_depth=9, image_depth=9)
    import_student(student, tiny.towers(), image_depth=9, image_length=2, feature_width=24)

    assert imported.model.state_dict()["text_prompts.tokens"].shape == (3, 2, 32)


def test_text_prompts_that_fill_all_positions_are_refused(tmp_path: Path) -> None:
    length = tiny.CONTEXT_LENGTH - 2
    fitting = {**tiny_prompts("text", length=length - 1), **tiny_prompts("image")}
    assert import_teacher(save(tmp_path / "a.tar", fitting), tiny.towers()).model

    path = save(tmp_path / "b.tar", {**fitting, **tiny_prompts("text", length=length)})
    message = refused(import_teacher, path, tiny.towers())
    assert_matches(message, "text prompts of length 22 .* in the 24 positions")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt_learner.compound_prompts_text.0", [2, 32], "no part of .* teacher"),
        (f"{PROJECTOR}0.weight", [24, 16, 1, 1], "no part of .* teacher"),
        (traces.DEEPER["image"].format(0), [2, 32], "no part of .* teacher"),
        ("image_encoder.transformer.resblocks.7.ln_1.weight", [32], "no part of .* teacher"),
        ("text_encoder.token_embedding", [32], "no part of .* teacher"),
        ("image_encoder.proj", [32, 20], r"shape \[32, 20\], .* 'tiny' has \[32, 16\]"),
        ("prompt_learner.ctx", torch.full((2, 32), torch.nan), "not finite"),
        ("image_encoder.ln_post.bias", torch.full((32,), torch.nan), "not finite"),
    ],
)
def test_a_weight_that_is_not_of_a_teacher_is_named(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = save(tmp_path / "a.tar", changed(tiny_state(), {key: value}))

    assert_matches(refused(import_teacher, path, tiny.towers()), f"^'{key}' in .* {message}")


def test_the_first_of_several_unknown_keys_is_named(tmp_path: Path) -> None:
    state = {"first": torch.zeros(1), **tiny_state(), "another": torch.zeros(1)}

    message = refused(import_teacher, save(tmp_path / "a.tar", state), tiny.towers())

    assert_matches(message, "^'first' in ")


@pytest.mark.parametrize(
    ("change", "rest", "message"),
    [
        ({"prompt_learner.ctx": [2, 32]}, {}, "^'prompt_learner.ctx' in .* no part of .* student"),
        ({traces.DEEPER["text"].format(1): [2, 32]}, {}, "VPT_shallow' in .* no part of .* stud"),
        (tiny_projector(width=20), {}, "input width 20 in .*'tiny' have width 16; set student.mod"),
        ({}, {"feature_width": 32}, "output width 24 in .* the class vectors have width 32"),
        ({}, {"image_depth": 2}, "depth 3 in .* image_depth = 2; set student.image_depth: 3"),
        ({}, {"image_length": 5}, "length 2 in .* image_length = 5; set student.image_length: 2"),
        (tiny_prompts("image", width=48), {}, "width 48 in .* width 32; set student.model"),
        (tiny_prompts("image", depth=4), {}, "depth 4 .* 3 layers"),
        ({f"{PROJECTOR}1.weight": [7]}, {}, "projector in .* does not fit: .*1.we"),
        ({f"{PROJECTOR}4.weight": [7]}, {}, "does not fit: .*4.weight"),
        ({f"{PROJECTOR}1.running_var": None}, {}, "1.running_var"),
        ({f"{PROJECTOR}0.weight": None}, {}, "0.weight"),
        ({f"{PROJECTOR}3.weight": None}, {}, "3.weight"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], rest: dict[str, int], message: str
) -> None:
    path = save(tmp_path / "a.tar", changed(tiny_student_state(), change))

    assert_matches(refused(import_student, path, tiny.towers(), **rest), message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="checkpoint not found: '.*none.tar'; give a file"):
        import_teacher(tmp_path / "none.tar", tiny.towers())
    with pytest.raises(MissingFile):
        read_checkpoint(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content",
    [
        3,
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
    path = tmp_path / "a.tar"
    torch.save(content, path)

    refused(import_teacher, path, tiny.towers())
    if not isinstance(content, dict) or 1 in content:
        with pytest.raises(BadArtifact, match="is not a dictionary with strings as keys"):
            read_checkpoint(path)


def test_corrupt_files_are_refused_in_one_line(tmp_path: Path) -> None:
    content = save(tmp_path / "whole.tar", tiny_state()).read_bytes()
    start = content.index(b"prompt_learner.ctx")
    corrupt = {
        "empty": b"",
        "page": b"<html>not found</html>",
        "head": content[:100],
        "half": content[: len(content) // 2],
        "end": content[:-30],
        "pickle": content[:start] + b"\xff" * 40 + content[start + 40 :],
    }
    for name, data in corrupt.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)

        refused(import_teacher, path, tiny.towers())


def test_a_record_that_is_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tar", tiny_state())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size).filename
    rewrite(path, {largest: b"\0" * 8})

    assert_matches(refused(import_teacher, path, tiny.towers()), "cannot be read .*size")
