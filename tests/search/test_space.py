"""The search space of params.yaml: validated, and the default where a file has none."""

from pathlib import Path

import pytest

from pd_core.core.errors import BadParams
from pd_core.pipeline.stages.params import load_params
from pd_core.pipeline.stages.space import DEFAULT_SPACE

ROOT = Path(__file__).parents[2]
LR = "    lr: {low: 0.0002, high: 0.01, log: true}"


def with_line(folder: Path, line: str) -> Path:
    """Write the profile's parameters with another range of `student.lr`."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count(LR) == 1
    (folder / "params.yaml").write_text(text.replace(LR, f"    {line}"))
    return folder / "params.yaml"


def test_a_file_without_a_space_has_that_of_the_papers_profile(tmp_path: Path) -> None:
    text = (ROOT / "paper" / "params.yaml").read_text()
    before, _, rest = text.partition("\nsearch:")
    (tmp_path / "params.yaml").write_text(f"{before}\n{rest[rest.index('datasets:') :]}")

    assert load_params(tmp_path / "params.yaml").search == DEFAULT_SPACE
    assert load_params(ROOT / "paper" / "params.yaml").search == DEFAULT_SPACE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: {low: 0.1, high: 0.01}", "give low and high, low < high, or choices"),
        ("lr: {low: 0.1}", "give low and high, low < high, or choices"),
        ("lr: {low: 0, high: 0.1, log: true}", "give low > 0 where log is true"),
        ("lr: {choices: [0.1]}", "give two or more choices and no bounds, or low and high"),
        ("lr: {low: -1, high: 0.1}", "search.student.lr = -1: input should be greater than 0"),
        ("lr: {low: 0.1, high: 1.0, step: 2}", "unknown key 'search.student.lr.step'"),
        ("rate: {low: 0.1, high: 1.0}", "unknown key 'search.student.rate'; known: "),
        ("image_length: {low: 1.5, high: 3}", "search.student.image_length = 1.5: "),
        ("flip: {choices: [true, 2]}", "search.student.flip = 2: "),
    ],
)
def test_a_wrong_range_is_refused_in_one_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadParams) as error:
        load_params(with_line(tmp_path, line))

    assert message in str(error.value)
