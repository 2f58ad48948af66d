"""The verb that puts two states of the project beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pd_core.cli.common import open_store, print_json, say

if TYPE_CHECKING:
    from pd_core.reporting.comparison import Comparison, Side
    from pd_core.reporting.comparison.differences import MetricDifference

app = typer.Typer()

Reference = Annotated[
    str,
    typer.Argument(
        help="A git revision, an MLflow run's id, or a model version: greek/3, greek@champion.",
        show_default=False,
    ),
]

_NONE = "–"
_TESTS = """\
p       of a data set: McNemar's test on its test pictures, for hm a permutation test;
        of the average: Wilcoxon's test over the data sets; not corrected for the many rows"""
_PIPED_WIDTH = 10_000  # columns: no line is broken where a program reads


@app.command()
def compare(
    first: Reference,
    second: Reference,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the parameters and metrics that differ, and whether it is more than chance."""
    from pd_core.reporting import comparison

    sides = [comparison.find_side(given, Path.cwd(), open_store) for given in (first, second)]
    found = comparison.compare(*sides)
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found)


def _show(found: Comparison) -> None:
    say(f"first   {found.first.title}")
    say(f"second  {found.second.title}")
    piped = not Console().is_terminal
    console = Console(width=_PIPED_WIDTH) if piped else Console()
    if found.params:
        console.print(_params_table(found, piped))
    else:
        say("no parameter that both know differs")
    if found.metrics or found.averages:
        console.print(_metrics_table([*found.metrics, *found.averages], piped))
        say(_TESTS)
    for note in found.notes:
        say(f"note    {note}")


def _params_table(found: Comparison, piped: bool) -> Table:
    table = _table("parameter", "first", "second", "data sets", piped=piped)
    for one in found.params:
        values = [_NONE if value is None else str(value) for value in (one.first, one.second)]
        _add(table, one.name, *values, _listed(one.datasets, found.datasets))
    return table


def _listed(some: Sequence[str], everybody: Sequence[str]) -> str:
    """Name some data sets, or those that are left out if these are fewer."""
    others = [name for name in everybody if name not in some]
    if not others:
        return "all"
    return f"all but {', '.join(others)}" if len(others) < len(some) else ", ".join(some)


def _metrics_table(rows: Iterable[MetricDifference], piped: bool) -> Table:
    table = _table("data set", "who", "metric", piped=piped)
    for head in ("first", "second", "difference", "p", "pairs"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in rows:
        _add(
            table,
            one.dataset or "average",
            one.who,
            one.metric,
            f"{one.first:.2f}",
            f"{one.second:.2f}",
            f"{one.difference:+.2f}",
            _p(one.p),
            _NONE if one.pairs is None else str(one.pairs),
        )
    return table


def _table(*heads: str, piped: bool) -> Table:
    """Make a table; one without lines where a program reads."""
    return Table(*heads, box=None, pad_edge=False) if piped else Table(*heads)


def _add(table: Table, *cells: str) -> None:
    """Add a row as it is: brackets are no markup."""
    table.add_row(*map(Text, cells))


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _as_dict(found: Comparison) -> dict[str, Any]:
    return {
        "first": _side(found.first),
        "second": _side(found.second),
        "datasets": list(found.datasets),
        "params": [
            {
                "name": one.name,
                "first": one.first,
                "second": one.second,
                "datasets": list(one.datasets),
            }
            for one in found.params
        ],
        "metrics": [{"dataset": one.dataset, **_metric(one)} for one in found.metrics],
        "averages": [_metric(one) for one in found.averages],
        "notes": list(found.notes),
    }


def _side(side: Side) -> Mapping[str, str]:
    return {"given": side.given, "kind": side.kind, "name": side.name}


def _metric(one: MetricDifference) -> dict[str, Any]:
    return {
        "who": one.who,
        "metric": one.metric,
        "first": one.first,
        "second": one.second,
        "difference": one.difference,
        "p": one.p,
        "pairs": one.pairs,
    }
