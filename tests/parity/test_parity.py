"""Our training code gives the numbers of the paper's original code."""

from pathlib import Path

import checks
import pytest
import traces


@pytest.mark.parametrize("part", checks.ALL)
@pytest.mark.parametrize("folder", traces.trace_folders(), ids=lambda folder: folder.name)
def test_our_numbers_are_those_of_the_original(folder: Path, part: str) -> None:
    checks.ALL[part](traces.load(folder)).verify()


def test_the_recordings_of_this_repository_are_found() -> None:
    own = [folder.name for folder in traces.trace_folders() if folder.parent.name == "data"]

    assert {"A", "D"} <= set(own)


def test_a_further_folder_of_recordings_is_picked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any name").mkdir()
    (tmp_path / "any name" / "trace.json").write_text("{}")
    (tmp_path / "no recording").mkdir()
    monkeypatch.setenv("PD_PARITY_DIR", str(tmp_path))

    further = [folder for folder in traces.trace_folders() if folder.parent == tmp_path]

    assert further == [tmp_path / "any name"]
