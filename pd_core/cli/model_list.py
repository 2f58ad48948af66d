"""Verbs that show open_clip's models: list, show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pd_core.cli.common import AsJson, print_json, print_table, say
from pd_core.cli.data import Root, mirror, places
from pd_core.core.errors import BadParams, PdError, unknown
from pd_core.data.acquire.sources import WEIGHTS, weights_of_tag
from pd_core.pipeline.settings import load_settings

if TYPE_CHECKING:
    from pd_core.models.model_table import ModelRow
    from pd_core.models.portable.preprocess import Preprocess

_NUMBERS = ("image", "text", "GFLOPs", "px")
_HEADS = ("model, tags", *_NUMBERS, "teacher", "student", "ONNX")
_TITLE = 20  # characters

app = typer.Typer(help="Show the models of open_clip.", no_args_is_help=True)


@app.command("list")
def list_models(
    part: Annotated[
        str, typer.Argument(help="Part of the names (default: all).", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List models with their tags, parameters (millions), GFLOPs of an image, and roles.

    A teacher is tuned by all methods (prompts), by CoOp only, or not at all (zero-shot). A student
    has prompts or not; without, it trains the projector, with or without the normalisations, or
    the complete tower.
    """
    from pd_core.models.model_table import model_rows

    rows = model_rows()
    chosen = [row for name, row in rows.items() if part.lower() in name.lower()]
    if not chosen:
        raise unknown("model", part, rows)
    if as_json:
        print_json([row.as_json() for row in chosen])
    else:
        print_table(_table(chosen))


def _table(rows: list[ModelRow]) -> Table:
    from pd_core.reporting.model_table import cells

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for head in _HEADS:
        table.add_column(head, justify="right" if head in _NUMBERS else "left", no_wrap=True)
    for row in rows:
        table.add_row("\n  ".join([row.name, *row.tags]), *cells(row))
    return table


@app.command()
def show(
    model: Annotated[
        str, typer.Argument(metavar="NAME[:TAG]", help="Model, and weights.", show_default=False)
    ],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's roles and preprocessing, and where the weights of a tag are looked for."""
    from pd_core.models.model_table import model_rows
    from pd_core.models.preprocessing import preprocess_of_tag

    name, _, tag = model.partition(":")
    rows = model_rows()
    if name not in rows:
        raise unknown("model", name, rows)
    row = rows[name]
    if tag and tag not in row.tags:
        raise _wrong_tag(row, tag)
    preprocessing = {each: preprocess_of_tag(name, each) for each in ([tag] if tag else row.tags)}
    weights = _weights(row, tag, places(root)[1]) if tag else {}
    if as_json:
        listed = {each: asdict(value) for each, value in preprocessing.items()}
        print_json({**row.as_json(), "preprocessing": listed, "weights": weights})
        return
    for title, text in (*_facts(row), *_texts(preprocessing), *weights.items()):
        say(f"{title:<{_TITLE}} {text or 'none'}")


def _wrong_tag(row: ModelRow, tag: str) -> PdError:
    from pd_core.models.pretrained import published, tags_of

    if tag in tags_of(row.name):
        trained = published(row.name, tag).model
        return BadParams(f"tag '{tag}' was trained with another activation; give {trained}:{tag}")
    return unknown(f"tag of '{row.name}'", tag, row.tags or ["none"])


def _facts(row: ModelRow) -> Iterator[tuple[str, str]]:
    text = "downloaded" if row.text_mparams is None else f"{row.text_mparams} M parameters"
    yield "image tower", f"{row.image_mparams} M parameters, {row.gflops} GFLOPs an image"
    yield "text tower", f"{text} ({row.text_model} of transformers)" if row.text_model else text
    yield "tokenizer", f"{row.tokenizer} of transformers" if row.tokenizer else "open_clip's"
    yield "as teacher", ", ".join(row.teacher)
    yield "as student", ", ".join(row.student)
    yield "ONNX export", "yes" if row.onnx else "no"


def _texts(preprocessing: Mapping[str, Preprocess]) -> Iterator[tuple[str, str]]:
    """Describe the preprocessing of each tag."""
    for tag, each in preprocessing.items():
        mean, std = (" ".join(f"{x:.4g}" for x in values) for values in (each.mean, each.std))
        how = f"{each.size} pixels, {each.resize_mode}, {each.interpolation}"
        yield f":{tag}", f"{how}, mean {mean}, std {std}"


def _weights(row: ModelRow, tag: str, data_root: Path) -> dict[str, str | None]:
    """Return the places of a tag's weights, and the file there, if any."""
    from pd_core.models.pretrained import cached_weights

    remote = weights_of_tag(row.name, tag)
    file, cached = data_root / WEIGHTS / remote.name, cached_weights(row.name, tag)
    state = "here" if file.is_file() else f"missing; `promptkd weights fetch {remote.name}`"
    return {
        "file": f"{file} ({state})",
        "mirror": mirror().url(f"{WEIGHTS}/{remote.name}") if load_settings().mirror else None,
        "open_clip's cache": None if cached is None else str(cached),
        "address": remote.addresses[0].url,
    }
