"""Load from 64 connections, for a short time; `make load` measures at full length."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import measure
from benchmarks.load.measure import Target
from benchmarks.load.students import EMBEDDED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def running() -> Iterator[Target]:
    with measure.target(EMBEDDED) as target:
        yield target


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return measure.write_picture(tmp_path / "picture.png", 32, 32)


def test_at_saturation_there_are_no_errors_and_memory_does_not_grow(
    running: Target, picture: Path
) -> None:
    rows = {row.what: row for row in measure.saturation(running, picture, seconds=12)}

    assert rows["errors at saturation"].value == 0
    assert rows["answers in a second"].value > 50
    assert rows["p99 of the latency"].value < 10_000
    # In six seconds; a request that stays in memory would make it hundreds.
    assert rows["growth of memory after the first seconds"].value < 60


def test_classifying_keeps_up_with_decoding(running: Target, picture: Path) -> None:
    # The target is 0.6, on two quiet cores. Without batches it would be below 0.2.
    row = measure.small_student(running, picture, seconds=3, rounds=3, least=0.6)

    assert row.value > 0.3
    assert row.note.endswith(" 0 errors")
