"""Read files that label pictures (JSON, text, MATLAB), and refuse damaged ones in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from pd_core.errors import BadData, MissingFile


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        MissingFile: There is none.
        BadData: It is not JSON.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"'{file}' is not JSON ({error}): download it again") from None


def read_lines(file: Path, form: re.Pattern[str], meaning: str) -> Iterator[tuple[str, list[str]]]:
    """Read the lines of a text file that are not blank.

    Args:
        file: The file.
        form: What a line has to match.
        meaning: The same in words, for the message.

    Yields:
        Where a line is, for messages, and the groups of its match.

    Raises:
        MissingFile: There is none.
        BadData: It is not text, has no lines, or a line is of another form.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(file).splitlines(), 1)]
    if not any(line for _, line in lines):
        raise BadData(f"'{file}' is empty: download it again")
    for number, line in lines:
        if not line:
            continue
        match = form.fullmatch(line)
        where = f"'{file}', line {number}"
        if match is None:
            raise BadData(f"{where} is {json.dumps(line[:80])}, not {meaning}: download it again")
        yield where, [group or "" for group in match.groups()]


def read_matlab(file: Path, variable: str) -> Any:
    """Read a variable of a MATLAB file, dimensions of length one removed.

    Raises:
        MissingFile: There is none.
        BadData: It is no MATLAB file, or lacks the variable.
    """
    from scipy.io import loadmat

    content = _bytes(file)
    try:
        variables = loadmat(BytesIO(content), squeeze_me=True)
    except Exception as error:  # damage makes the parser raise anything
        raise BadData(
            f"'{file}' is no MATLAB file that can be read ({error}): download it again"
        ) from None
    if variable not in variables:
        raise BadData(f"'{file}' has no variable '{variable}': download it again")
    return variables[variable]


def read_text(file: Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises:
        MissingFile: There is none.
        BadData: It is not text.
    """
    try:
        return _bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"'{file}' is not text ({error}): download it again") from None


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"no '{file}': download it") from None
    except OSError as error:
        raise BadData(f"'{file}' cannot be read ({error.strerror}): restore it") from None
