"""Few-shot lists, splits and pixels are those of the original, random number by random number."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pixel_checks
import pytest
import split_checks
import traces
from safetensors.torch import load_file

LISTS = {file: list(json.loads(file.read_text())) for file in traces.files("splits.json")}
PIXELS = {file: list(load_file(file)) for file in traces.files("transforms.safetensors")}


def parts(keys: list[str], known: Mapping[str, str]) -> list[str]:
    """Name the checks that find something to compare: a recording may leave a part out."""
    return [part for part, start in known.items() if any(re.match(start, key) for key in keys)]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        pytest.param(file, part, id=f"{file.parent.name}-{part}")
        for file, keys in LISTS.items()
        for part in parts(keys, split_checks.KEYS)
    ],
)
def test_our_lists_are_those_of_the_original(file: Path, part: str) -> None:
    compared = split_checks.ALL[part](json.loads(file.read_text()))

    assert compared or file.parent != traces.OWN


@pytest.mark.parametrize(
    ("file", "part"),
    [
        pytest.param(file, part, id=f"{file.parent.parent.name}-{part}")
        for file, keys in PIXELS.items()
        for part in parts(keys, pixel_checks.KEYS)
    ],
)
def test_our_pixels_are_those_of_the_original(file: Path, part: str) -> None:
    compared = pixel_checks.ALL[part](load_file(file))

    assert compared or file.parent.parent != traces.OWN


def test_the_recordings_of_this_repository_leave_no_part_out() -> None:
    lists = LISTS[traces.OWN / "splits.json"]
    pixels = PIXELS[traces.OWN / "transforms" / "transforms.safetensors"]

    assert parts(lists, split_checks.KEYS) == list(split_checks.ALL)
    assert parts(pixels, pixel_checks.KEYS) == list(pixel_checks.ALL)
