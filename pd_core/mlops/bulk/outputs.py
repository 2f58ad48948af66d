"""Files of predictions: a table to read, JSON, JSON lines, CSV and Parquet, written in batches."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from pd_core.core.atomic import write_file
from pd_core.core.errors import BadParams
from pd_core.mlops.bulk.predict import Row


class Format(StrEnum):
    """Format of predictions."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


Write = Callable[[Sequence[Row]], None]

_NAME_WIDTH = 24  # of the table's first column; longer paths push their line to the right
_GROUP = 10_000  # rows of a row group in Parquet


def format_of(out: Path | None) -> Format:
    """Return the format of a file by its suffix; a table for any other."""
    suffix = "" if out is None else out.suffix.lower().removeprefix(".")
    return Format(suffix) if suffix in list(Format) else Format.TABLE


@contextmanager
def writer(format_: Format, out: Path | None, top: int) -> Iterator[Write]:
    """Yield the function that writes rows to a file, or to standard output.

    The file appears when the block ends without an error.

    Args:
        format_: of the output.
        out: the file; None for standard output.
        top: number of classes of a row.

    Raises:
        BadParams: Parquet to standard output.
        NoSpace, PdError: the file cannot be written.
    """
    if out is None:
        if format_ is Format.PARQUET:
            raise BadParams("format 'parquet' is binary; give a file with --out")
        with _TEXT[format_](sys.stdout, top) as write:
            yield write
        return
    with write_file(out) as file:
        if format_ is Format.PARQUET:
            with _parquet(file, top) as write:
                yield write
            return
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        with _TEXT[format_](text, top) as write:
            yield write
        text.flush()
        text.detach()


def _printable(path: str) -> str:
    """Return a path as valid UTF-8; other bytes are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def _table(file: IO[str], _: int) -> Iterator[Write]:
    file.write(f"{'image':<{_NAME_WIDTH}}  probability  class\n")

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            name = f"{_printable(row.image):<{_NAME_WIDTH}}"
            if row.error:
                file.write(f"{name}  {'-':>11}  cannot be read: {row.error}\n")
            for class_, probability in row.ranking:
                file.write(f"{name}  {probability:>11.1%}  {class_}\n")
                name = " " * _NAME_WIDTH

    yield write


def _content(row: Row) -> dict[str, Any]:
    if row.error:
        return {"image": _printable(row.image), "error": row.error}
    predictions = [{"name": name, "probability": value} for name, value in row.ranking]
    return {"image": _printable(row.image), "predictions": predictions}


@contextmanager
def _json(file: IO[str], _: int) -> Iterator[Write]:
    separator = "[\n"

    def write(rows: Sequence[Row]) -> None:
        nonlocal separator
        for row in rows:
            file.write(separator + json.dumps(_content(row), ensure_ascii=False))
            separator = ",\n"

    yield write
    file.write("\n]\n")


@contextmanager
def _json_lines(file: IO[str], _: int) -> Iterator[Write]:
    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            file.write(json.dumps(_content(row), ensure_ascii=False) + "\n")

    yield write


def _columns(top: int) -> list[str]:
    """Return the columns of CSV and Parquet; the likeliest class has no number."""
    numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    pairs = [f"{name}{number}" for number in numbers for name in ("class", "probability")]
    return ["image", *pairs, "error"]


def _cells(row: Row, top: int) -> list[Any]:
    """Return the cells of a row, with None where there is nothing."""
    ranking = [*row.ranking, *[(None, None)] * (top - len(row.ranking))]
    return [_printable(row.image), *(cell for pair in ranking for cell in pair), row.error or None]


@contextmanager
def _csv(file: IO[str], top: int) -> Iterator[Write]:
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(_columns(top))

    def write(rows: Sequence[Row]) -> None:
        lines.writerows(_cells(row, top) for row in rows)

    yield write


@contextmanager
def _parquet(file: IO[bytes], top: int) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema(
        (name, pa.float64() if name.startswith("probability") else pa.string())
        for name in _columns(top)
    )
    buffered: list[list[Any]] = []
    with ParquetWriter(file, schema) as parquet:

        def flush() -> None:
            columns = zip(*buffered, strict=True)
            arrays = [
                pa.array(cells, kind) for cells, kind in zip(columns, schema.types, strict=True)
            ]
            parquet.write_table(pa.Table.from_arrays(arrays, schema=schema))
            buffered.clear()

        def write(rows: Sequence[Row]) -> None:
            buffered.extend(_cells(row, top) for row in rows)
            if len(buffered) >= _GROUP:
                flush()

        yield write
        if buffered:
            flush()


_TEXT = {Format.TABLE: _table, Format.JSON: _json, Format.JSONL: _json_lines, Format.CSV: _csv}
