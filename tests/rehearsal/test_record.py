"""The last rehearsal is kept, and `promptkd doctor` prints it."""

from pathlib import Path

import pytest

from pd_core.cli.doctor import rehearsal
from pd_core.cli.rehearse import table
from pd_core.rehearsal.estimate import Cost, Estimate, Needs, Part, Rate, StageEstimate
from pd_core.rehearsal.record import FILE, Record, read, write

GIB = 2**30


def estimate(name: str, seconds: float) -> Estimate:
    parts = (Part("teacher", 10, Rate(Cost(seconds / 10, seconds), 1.0)),)
    stage = StageEstimate("teacher", parts, Needs(memory=2 * GIB, disk=GIB), measured=3, steps=10)
    return Estimate((stage,), name, repeats=2)


RECORD = Record.of([estimate("dtd", 3600.0), estimate("eurosat", 7200.0)], "cpu")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(RECORD, tmp_path)

    assert read(tmp_path) == RECORD


@pytest.mark.parametrize("content", [None, "", "{}", '{"device": "cpu"}'])
def test_a_record_that_is_missing_or_of_another_version_is_none(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / FILE).parent.mkdir()
        (tmp_path / FILE).write_text(content)

    assert read(tmp_path) is None


def test_the_table_has_a_row_for_each_data_set_and_their_sum() -> None:
    rows = [row.cells for row in table(RECORD).body]

    assert rows == [
        ("dtd", "3", "20", "2.0 h", "40 s", "20.0 h", "2.0 GiB", "none", "2.0 GiB"),
        ("eurosat", "3", "20", "4.0 h", "40 s", "40.0 h", "2.0 GiB", "none", "2.0 GiB"),
        ("together", "", "40", "6.0 h", "80 s", "60.0 h", "2.0 GiB", "none", "4.0 GiB"),
    ]


def test_doctor_names_time_memory_and_the_slowest_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "promptkd rehearse" in rehearsal().message
    write(RECORD, tmp_path)

    message = rehearsal().message

    assert message == (
        "about 6.0 h on cpu, one stage after the other; 2.0 GiB of memory; slowest: teacher 100%"
    )
