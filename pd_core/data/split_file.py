"""Read the community's lists, `split_zhou_*.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pd_core.data.label_files import read_json
from pd_core.data.paths import clean_path
from pd_core.data.splits import Item, Items, Splits
from pd_core.errors import BadData

_LISTS = ("train", "val", "test")


def read_split_file(file: Path) -> Splits:
    """Read `{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.

    Raises:
        MissingFile: There is no such file.
        BadData: It is not of this form, or a path leads out of the image folder.
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
