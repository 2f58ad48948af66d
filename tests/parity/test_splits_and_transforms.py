"""Few-shot lists, splits and pixels are those of the original, random number by random number."""

import json
from pathlib import Path

import pixel_checks
import pytest
import split_checks
import traces
from safetensors.torch import load_file

SPLIT_FILES = pytest.mark.parametrize(
    "file", traces.files("splits.json"), ids=lambda file: file.parent.name
)
PIXEL_FILES = pytest.mark.parametrize(
    "file", traces.files("transforms.safetensors"), ids=lambda file: file.parent.parent.name
)


@pytest.mark.parametrize("part", split_checks.ALL)
@SPLIT_FILES
def test_our_lists_are_those_of_the_original(file: Path, part: str) -> None:
    compared = split_checks.ALL[part](json.loads(file.read_text()))

    assert compared or file.parent != traces.OWN
    if not compared:
        pytest.skip("not in this recording")


@pytest.mark.parametrize("part", pixel_checks.ALL)
@PIXEL_FILES
def test_our_pixels_are_those_of_the_original(file: Path, part: str) -> None:
    compared = pixel_checks.ALL[part](load_file(file))

    assert compared or file.parent.parent != traces.OWN
    if not compared:
        pytest.skip("not in this recording")
