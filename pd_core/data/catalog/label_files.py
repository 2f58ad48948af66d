"""Readers of the formats that labels come in: JSON, text and MATLAB files, split files."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.loading.splits import Item, Items, Splits, clean_path

MAX_BYTES = 2**28
"""Limit of an unpacked label file; a list of a million images is half as large."""

# MATLAB's format, level 5: a header, then elements of a type, a size and a content.
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_MAX_DEPTH = 16  # of nested matrices; the files of the table have four


def read_json(file: Path) -> Any:
    """Read a JSON file; raises as `read_text` does."""
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"'{file}' is not JSON ({error}): download it again") from None


def read_lines(file: Path, form: re.Pattern[str], meaning: str) -> Iterator[tuple[str, list[str]]]:
    """Read the lines of a text file that are not blank; raises as `read_text` does.

    Args:
        file: The file.
        form: Pattern of a line.
        meaning: The pattern in words, for errors.

    Yields:
        The place of a line in words, for errors, and the groups of its match.
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
    """Read a variable of a MATLAB file, squeezed; raises as `read_text` does."""
    from scipy.io import loadmat

    content = _bytes(file)
    try:
        _check_matlab(content)
        variables = loadmat(BytesIO(content), squeeze_me=True)
    except Exception as error:  # the parser raises anything on corrupt input
        raise BadData(
            f"'{file}' is no MATLAB file that can be read ({error}): download it again"
        ) from None
    if variable not in variables:
        raise BadData(f"'{file}' has no variable '{variable}': download it again")
    return variables[variable]


def read_text(file: Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises:
        MissingFile: There is no such file.
        BadData: It is too large, unreadable or not UTF-8.
    """
    try:
        return _bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"'{file}' is not text ({error}): download it again") from None


def _bytes(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise BadData(
                f"'{file}' has {size} bytes, more than the {MAX_BYTES} of any label file: "
                "download it again"
            )
        return file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"no '{file}': download it") from None
    except OSError as error:
        raise BadData(f"'{file}' cannot be read ({error.strerror}): restore it") from None


def _check_matlab(content: bytes) -> None:
    """Raise ValueError if nested elements exceed their parents, or are nested too deep.

    The parser would allocate whatever they claim, and recurse until the process dies.
    """
    if content[124:128] != b"\0\1IM":
        raise ValueError("not of level 5, little-endian")
    budget = MAX_BYTES
    for kind, element in _elements(memoryview(content)[_HEADER:]):
        matrix = element
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            matrix = memoryview(unpacker.decompress(element, budget))
            if unpacker.unconsumed_tail:
                raise ValueError(f"unpacks to more than {MAX_BYTES} bytes")
            budget -= len(matrix)
        _check_depth(matrix)


def _check_depth(elements: memoryview) -> None:
    stack = [(elements, 0)]
    while stack:
        outer, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("its matrices are nested too deep")
        stack += [(inner, depth + 1) for kind, inner in _elements(outer) if kind == _MATRIX]


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of consecutive elements, which are padded to eight bytes."""
    start = 0
    while start + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, start)
        start += 8
        if kind >> 16:  # a small one: size and content share the eight bytes with the type
            continue
        if size > len(content) - start:
            raise ValueError(f"an element claims {size} bytes, {len(content) - start} are left")
        yield kind, content[start : start + size]
        start += size if kind == _COMPRESSED else size + -size % 8


_LISTS = ("train", "val", "test")


def read_split_file(file: Path) -> Splits:
    """Read `{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.

    Raises:
        MissingFile: There is no such file.
        BadData: It has another form, or a path leads out of the image folder.
    """
    lists = read_json(file)
    if not isinstance(lists, dict) or not set(_LISTS) <= set(lists):
        raise BadData(f"split file '{file}' lacks the lists train, val, test: download it again")
    return Splits(*(_items(lists[name], f"'{file}', list '{name}'") for name in _LISTS))


def _items(rows: Any, where: str) -> Items:
    if not isinstance(rows, list):
        raise BadData(f"{where} is no list: download the file again")
    return tuple(_item(row, where, number) for number, row in enumerate(rows))


def _item(row: Any, where: str, number: int) -> Item:
    match row:
        # `True` is an int to Python, not a label.
        case [str(given), int(label), str(name)] if (
            label >= 0 and label is not True and label is not False and name.strip()
        ):
            path = clean_path(given)
            if path is not None:
                return Item(path, label, name)
    raise BadData(
        f"{where}, entry {number} is {json.dumps(row)[:80]}, not [path below the image folder, "
        "label from 0, class name]: download the file again"
    )
