"""The best values as a diff of params.yaml, and written into it."""

import shutil
from pathlib import Path

import pytest

from pd_core.pipeline.stages.params import load_params
from pd_core.search.proposal import apply, difference, proposed

ROOT = Path(__file__).parents[2]
SOURCE = "tuned: 40 trials, validation"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def changed(text: str) -> list[str]:
    return [line for line in text.splitlines()[2:] if line[0] in "+-"]


def test_only_the_row_of_the_data_set_changes(file: Path) -> None:
    values = {"lr": 0.00123, "crop_scale": [0.5, 1.0], "epochs": 12}  # 12 as it is
    new = proposed(file, "embedded_greek", "student", values, SOURCE)

    assert changed(difference(file, new)) == [
        "-  embedded_greek: {prepare: {}, teacher: {}, student: {}}",
        "+  embedded_greek:",
        "+    prepare: {}",
        "+    teacher: {}",
        "+    student:",
        "+      lr: 0.00123             # tuned: 40 trials, validation",
        "+      crop_scale:             # tuned: 40 trials, validation",
        "+      - 0.5",
        "+      - 1.0",
    ]


def test_a_second_search_changes_only_its_lines(file: Path) -> None:
    apply(file, proposed(file, "embedded_greek", "student", {"lr": 0.00123}, SOURCE))
    new = proposed(file, "embedded_greek", "student", {"lr": 0.002}, "tuned: 60 trials, validation")

    assert changed(difference(file, new)) == [
        "-      lr: 0.00123             # tuned: 40 trials, validation",
        "+      lr: 0.002               # tuned: 60 trials, validation",
    ]


def test_values_of_a_row_that_has_some_keep_their_place_and_comment(file: Path) -> None:
    new = proposed(file, "embedded_digits", "teacher", {"lr": 0.004}, SOURCE)

    assert "# five base classes give few steps an epoch" in new
    assert "# all three as PromptSRC" in new
    assert "      lr: 0.004               # tuned: 40 trials, validation" in new


def test_what_is_written_is_read(file: Path) -> None:
    values = {"lr": 0.00123, "crop_scale": [0.5, 1.0], "image_depth": 2}
    apply(file, proposed(file, "embedded_symbols", "student", values, SOURCE))
    student = load_params(file).for_dataset("embedded_symbols").student

    assert (student.lr, student.crop_scale, student.image_depth) == (0.00123, (0.5, 1.0), 2)
    assert load_params(file).for_dataset("embedded_greek").student.lr == 0.0006


def test_current_values_change_nothing(file: Path) -> None:
    new = proposed(file, "embedded_greek", "student", {"lr": 0.0006, "epochs": 12}, SOURCE)

    assert new == file.read_text()
    assert difference(file, new) == ""
