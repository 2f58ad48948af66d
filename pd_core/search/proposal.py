"""Proposal of a search: the same `params.yaml` with the best values in a data set's row."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from pd_core.core.atomic import write_bytes
from pd_core.pipeline.project import content_of, set_value, text_of
from pd_core.pipeline.stages.params import load_params


def proposed(file: Path, name: str, stage: str, values: Mapping[str, Any], source: str) -> str:
    """Return the text of a `params.yaml` with values for one data set.

    Other lines stay as they are; a row in one line becomes several, with a comment each.

    Args:
        file: the `params.yaml`.
        name: of the data set.
        stage: whose parameters are set.
        values: of the parameters; those that the file has already are left out.
        source: comment of each value.
    """
    config = getattr(load_params(file).for_dataset(name), stage).model_dump(mode="json")
    text = file.read_text("utf-8")
    changed = {key: value for key, value in values.items() if config[key] != value}
    if not changed:
        return text
    content = content_of(text)
    row = content["datasets"][name]
    for part in (row, row.setdefault(stage, CommentedMap())):
        part.fa.set_block_style()
    for key, value in changed.items():
        set_value(row[stage], key, value, source)
    return text_of(content)


def difference(file: Path, new: str) -> str:
    """Return the changes of a file as a unified diff; empty if there are none."""
    before = file.read_text("utf-8").splitlines()
    lines = unified_diff(before, new.splitlines(), str(file), str(file), lineterm="")
    return "\n".join(lines)


def apply(file: Path, new: str) -> None:
    """Write the proposed text.

    Raises:
        NoSpace: the disk is full; the file stays as it was.
        PdError: the file cannot be written.
    """
    write_bytes(file, new.encode())
