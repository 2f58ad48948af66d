"""Lists of the user's own labelled images, as spreadsheets and other programs write them."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.catalog.label_files import MAX_BYTES
from pd_core.data.loading.splits import HEIC, clean_path, is_picture

CONVERT = "install promptkd[heic] or convert them"
"""Remedy for images of phones that cannot be read."""

_COLUMNS = {
    "path": (
        "path", "image", "image_path", "img", "img_path", "file", "file_name", "file_path",
        "filename", "filepath",
    ),
    "label": ("label", "class", "class_name", "classname", "category", "label_name"),
    "split": ("split", "subset", "set", "partition"),
}  # fmt: skip
_EITHER = "name"  # a path beside a label, a label beside a path
_DELIMITERS = ",;\t|"
_MISSING = ("", "#n/a", "<na>", "n/a", "na", "nan", "none", "null")  # as programs write it
_SPLIT = re.compile(
    r"(train|val|test|dev)(?:ing|id|idation)?(?:[ _-]?(?:set|data|images|\d{4}))?", re.IGNORECASE
)


class Row(NamedTuple):
    """A labelled image of a list or a class folder."""

    path: str  # below the list's folder, or the data root
    label: str  # class name
    split: str  # train, val or test


@dataclass(frozen=True)
class Listing:
    """A list: its rows, and its columns that are not read."""

    rows: list[Row]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    values: Mapping[str, Any]  # by column
    where: str  # for errors


def read_list(file: Path, split: str, folder: Path | None = None) -> Listing:
    """Read a list with a column of paths, one of labels and, optionally, one of splits.

    Args:
        file: A file with one of the suffixes `LISTS`.
        split: Split of rows without one.
        folder: Folder that paths start at; None for that of the list.

    Raises:
        MissingFile: The list, or a listed image, is missing.
        BadData: It is malformed, ambiguous, or not UTF-8.
    """
    if not file.is_file():
        raise MissingFile(f"no list '{file}': put it there, or correct prepare.own")
    header, records = _records(file)
    columns = _columns(header, file)
    rows = [_row(record, columns, split) for record in records]
    if not rows:
        raise BadData(f"'{file}' lists no images: add some")
    start = folder or file.parent
    rows = [row._replace(path=_on_disk(row.path, start)) for row in rows]
    if absent := [row.path for row in rows if not _is_file(row.path, start)]:
        where = "the list's folder" if folder is None else f"'{folder}'"
        raise MissingFile(
            f"{len(absent)} of the {len(rows)} images of '{file}' are not there, the first is "
            f"'{absent[0][:80]}': paths start at {where}"
        )
    if heic := [row.path for row in rows if _needs_library(row.path)]:
        raise BadData(
            f"{len(heic)} of the {len(rows)} images of '{file}' cannot be read, the first is "
            f"'{heic[0]}': {CONVERT}"
        )
    used = (*columns.values(), "", "Unnamed: 0")  # pandas' index
    return Listing(rows, tuple(name for name in header if name not in used))


def _on_disk(path: str, folder: Path) -> str:
    """Return a path in the Unicode form of the file: programs and file systems differ in it."""
    forms = (path, normalize("NFC", path), normalize("NFD", path))
    return next((form for form in forms if _is_file(form, folder)), path)


def _is_file(path: str, folder: Path) -> bool:
    # Unlike pathlib's, it does not raise an error for a name that is too long.
    return os.path.isfile(f"{folder}/{path}")  # noqa: PTH113


def _needs_library(path: str) -> bool:
    """Return True for an image of a phone, if the library that decodes it is not installed."""
    return Path(path).suffix.lower() in HEIC and not is_picture(Path(path).name)


def split_of(name: str) -> str | None:
    """Return the split that a name such as "Training" or "val2017" means, if any."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    split = match[1].lower()
    return "val" if split == "dev" else split


def _records(file: Path) -> tuple[list[str], list[_Record]]:
    """Read column names and records of a list."""
    text = _text(file)
    match file.suffix.lower():
        case ".json":
            return _objects(file, [(f"entry {n}", v) for n, v in enumerate(_array(file, text), 1)])
        case ".jsonl":
            lines = [(f"line {n}", line) for n, line in enumerate(text.split("\n"), 1)]
            lines = [(where, line) for where, line in lines if line.strip()]
            return _objects(file, [(where, _json(file, line, where)) for where, line in lines])
        case _:
            try:
                return _table(file, text)
            except csv.Error as error:
                raise BadData(f"list '{file}' is no CSV ({error}): correct it") from None


def _text(file: Path) -> str:
    """Read a text in UTF-8, or in UTF-16 with its byte order mark."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadData(f"list '{file}' has more than {MAX_BYTES} bytes: remove other columns")
        data = file.read_bytes()
    except OSError as error:
        raise BadData(f"list '{file}' cannot be read ({error.strerror}): restore it") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    remedy = "save it as UTF-8 (in Excel: 'CSV UTF-8')"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadData(f"list '{file}' is not UTF-8 in line {line}: {remedy}") from None
    if "\0" in text:
        raise BadData(f"list '{file}' is not text in UTF-8: {remedy}")
    return text


def _table(file: Path, text: str) -> tuple[list[str], list[_Record]]:
    header, delimiter = _header(text)
    if not header:
        raise BadData(f"'{file}' lists no images: add some")
    reader = csv.DictReader(
        StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    records = []
    for values in reader:
        where = f"'{file}', line {reader.line_num}"
        if None in values:
            raise BadData(
                f"{where} has more than the {len(header)} values of the first line: put values "
                "with commas in quotes"
            )
        if any((value or "").strip() for value in values.values()):  # spreadsheets add empty rows
            records.append(_Record(values, where))
    return header, records


def _header(text: str) -> tuple[list[str], str]:
    """Return the column names, and the delimiter with which there are two that are known."""
    for delimiter in _DELIMITERS:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        header = next(reader, [])
        if len(_matches(header)) > 1:
            return header, delimiter
    return next(csv.reader(StringIO(text, newline="")), []), ","


def _array(file: Path, text: str) -> list[Any]:
    content = _json(file, text, "")
    if not isinstance(content, list):
        raise BadData(f"list '{file}' is no JSON list: give [{{path, label, split}}, ...]")
    return content


def _json(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f", {where}," if where else ""
        raise BadData(
            f"list '{file}'{place} is not JSON ({error}): correct it; a list with one object a "
            "line has the suffix .jsonl"
        ) from None


def _objects(file: Path, entries: Iterable[tuple[str, Any]]) -> tuple[list[str], list[_Record]]:
    records = []
    for where, entry in entries:
        place = f"'{file}', {where}"
        if not isinstance(entry, dict):
            raise BadData(
                f"{place} is {json.dumps(entry)[:80]}: give {{path, label}} and, optionally, split"
            )
        records.append(_Record(entry, place))
    if not records:
        raise BadData(f"'{file}' lists no images: add some")
    return list(dict.fromkeys(key for record in records for key in record.values)), records


def _columns(header: list[str], file: Path) -> dict[str, str]:
    """Return the columns of path, label and, if there is one, split."""
    columns = {}
    for role, names in _matches(header).items():
        if len(names) > 1:
            raise BadData(
                f"list '{file}' has the columns {_quoted(names)}, which may all be the {role}: "
                "keep one of them"
            )
        columns[role] = names[0]
    if {"path", "label"} <= columns.keys():
        return columns
    raise BadData(
        f"list '{file}' has the columns {_quoted(header)}, not path and label: name them so (in "
        "the first line of a CSV file)"
    )


def _matches(header: Iterable[str]) -> dict[str, list[str]]:
    """Return the columns that may be path, label and split."""
    keys = [(name, name.strip().lower().replace(" ", "_")) for name in header]
    matches: dict[str, list[str]] = {}
    for role, known in _COLUMNS.items():
        if names := [name for name, key in keys if key in known]:
            matches[role] = names
    missing = {"path", "label"} - matches.keys()
    if len(missing) == 1 and (names := [name for name, key in keys if key == _EITHER]):
        matches[missing.pop()] = names
    return matches


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name[:40]}'" for name in names)


def _row(record: _Record, columns: Mapping[str, str], split: str) -> Row:
    values = {role: record.values.get(column) for role, column in columns.items()}
    return Row(
        _path(values["path"], record.where),
        _label(values["label"], record.where),
        _split(values.get("split"), record.where) or split,
    )


def _path(value: Any, where: str) -> str:
    # Windows' paths; a file's own name has no backslash.
    given = value.strip().replace("\\", "/") if isinstance(value, str) else ""
    path = None if "://" in given else clean_path(given)
    if path is None:
        raise BadData(
            f"{where} has the path {json.dumps(value)[:80]}: give one below the list's folder, "
            "without a drive, a leading slash or '..'"
        )
    return path


def _label(value: Any, where: str) -> str:
    text = _shown(value)
    if text is None:
        raise BadData(f"{where} has the label {json.dumps(value)[:80]}: give the class as text")
    if not text:
        raise BadData(f"{where} has no label: give the class, or remove the row")
    if text.lower() in _MISSING:
        raise BadData(
            f"{where} has the label '{text}', as programs write a missing one: give the class, or "
            "remove the row; if this is a class, call it otherwise"
        )
    return text


def _split(value: Any, where: str) -> str:
    text = (_shown(value) or "").lower()
    if text in _MISSING:
        return ""
    split = split_of(text)
    if split is None:
        raise BadData(f"{where} has the split '{text[:40]}': give train, val or test")
    return split


def _shown(value: Any) -> str | None:
    """Return a value as text with single blanks; None if it is neither text nor a number."""
    match value:
        case None:
            return ""
        case bool():
            return None
        case str() | int():
            return " ".join(str(value).split())
        case float() if value != value:
            return "nan"
        case _:
            return None
