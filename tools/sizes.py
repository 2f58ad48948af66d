"""Print the sizes that the architecture keeps to, each beside its limit; exit 1 if one is exceeded.

Run it from anywhere: ``python tools/sizes.py``. `--list` names the functions behind the counts.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 8
"""More parameters than these count as many."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """One measured size.

    Attributes:
        name: of what.
        value: measured here.
        limit: the largest value allowed.
    """

    name: str
    value: int
    limit: int


@dataclass(frozen=True)
class Function:
    """A function in the sources: where it stands, its parameters, its lines without docstring."""

    where: str
    parameters: int
    lines: int


def sizes() -> list[Size]:
    """Measure the working tree."""
    package = sorted((ROOT / "pd_core").rglob("*.py"))
    found = functions()
    entries = [path for path in (ROOT / "pd_core").iterdir() if path.name != "__pycache__"]
    return [
        Size("files and folders at the root of pd_core", len(entries), 12),
        Size("modules of pd_core", len(package), 130),
        Size("lines of pd_core and flows", sum(map(_lines, _sources())), 30_000),
        Size(f"functions of more than {PARAMETERS} parameters", len(many(found)), 3),
        Size("lines of the longest function", max(one.lines for one in found), 80),
        Size("lines of dvc.yaml", _lines(ROOT / "dvc.yaml"), 200),
        Size("lines of dvc.lock", _lines(ROOT / "dvc.lock"), 5_000),
    ]


def functions() -> list[Function]:
    """Return every function of pd_core and flows."""
    return [function for path in _sources() for function in _functions(path)]


def many(found: list[Function]) -> list[Function]:
    """Return those with many parameters, the most first."""
    return sorted(
        (one for one in found if one.parameters > PARAMETERS), key=lambda one: -one.parameters
    )


def _sources() -> list[Path]:
    return sorted(path for name in ("pd_core", "flows") for path in (ROOT / name).rglob("*.py"))


def _functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, _Function):
            where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            yield Function(where, _parameters(node), _length(node))


def _parameters(node: _Function) -> int:
    """Count parameters without `self`."""
    arguments = node.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _length(node: _Function) -> int:
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Print all sizes; return 1 if a limit is exceeded."""
    measured = sizes()
    for size in measured:
        mark = "" if size.value <= size.limit else "  exceeds its limit"
        print(f"{size.value:7,} of {size.limit:6,}  {size.name}{mark}")
    if "--list" in sys.argv[1:]:
        found = functions()
        for function in many(found):
            print(f"{function.parameters:3} parameters  {function.where}")
        for function in sorted(found, key=lambda one: -one.lines)[:10]:
            print(f"{function.lines:3} lines       {function.where}")
    return int(any(size.value > size.limit for size in measured))


if __name__ == "__main__":
    sys.exit(main())
