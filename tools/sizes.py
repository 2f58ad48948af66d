"""Print sizes of the code, each beside its limit; exit 1 if a limit is exceeded.

Run it from anywhere: ``python tools/sizes.py``. `--list` adds the places behind the counts.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 8
"""More parameters than these count as many."""

QUESTIONS = ("What", "Who", "Which", "Where", "Whether")
"""First words of docstrings that do not name what they document."""

VAGUE = ("one", "found", "who", "known", "told", "said")
"""Names of variables that do not name their value."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function


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
    all_functions = functions()
    entries = [path for path in (ROOT / "pd_core").iterdir() if path.name != "__pycache__"]
    longest = max(function.lines for function in all_functions)
    return [
        Size("files and folders at the root of pd_core", len(entries), 12),
        Size("modules of pd_core", len(package), 120),
        Size("lines of pd_core and flows", sum(map(_lines, _sources())), 26_500),
        Size("lines of tests", sum(map(_lines, (ROOT / "tests").rglob("*.py"))), 30_000),
        Size("bytes of the README", (ROOT / "README.md").stat().st_size, 9 * 1024),
        Size(f"functions of more than {PARAMETERS} parameters", len(many(all_functions)), 3),
        Size("lines of the longest function", longest, 80),
        Size("docstrings that begin with a question word", len(docstrings()), 5),
        Size("variables with a vague name", len(variables()), 20),
        Size("lines of dvc.yaml", _lines(ROOT / "dvc.yaml"), 200),
        Size("lines of dvc.lock", _lines(ROOT / "dvc.lock"), 5_000),
    ]


def docstrings() -> list[str]:
    """Return the places of docstrings of pd_core and flows that begin with a question word."""
    places = []
    for path in _sources():
        for node in ast.walk(_tree(path)):
            if isinstance(node, _Documented):
                text = ast.get_docstring(node) or ""
                if {*text.split(maxsplit=1)[:1]} & {*QUESTIONS}:
                    line = node.body[0].lineno
                    places.append(f"{path.relative_to(ROOT)}:{line} {text.splitlines()[0]}")
    return places


def variables() -> list[str]:
    """Return the places of variables of pd_core and flows that are called by a vague name."""
    places = set()
    for path in _sources():
        for node in ast.walk(_tree(path)):
            name = node.arg if isinstance(node, ast.arg) else getattr(node, "id", None)
            stored = isinstance(node, ast.arg) or isinstance(getattr(node, "ctx", None), ast.Store)
            if stored and name in VAGUE:
                places.add(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {name}")
    return sorted(places)


def functions() -> list[Function]:
    """Return every function of pd_core and flows."""
    return [function for path in _sources() for function in _functions(path)]


def many(candidates: list[Function]) -> list[Function]:
    """Return those with many parameters, the most first."""
    wide = [function for function in candidates if function.parameters > PARAMETERS]
    return sorted(wide, key=lambda function: -function.parameters)


def _sources() -> list[Path]:
    return sorted(path for name in ("pd_core", "flows") for path in (ROOT / name).rglob("*.py"))


def _functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, _Function):
            where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            yield Function(where, _parameters(node), _length(node))


def _parameters(node: _Function) -> int:
    """Count parameters without `self`."""
    arguments = node.args
    parameters = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return len([item for item in parameters if item.arg not in ("self", "cls")])


def _length(node: _Function) -> int:
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Print all sizes; return 1 if a limit is exceeded."""
    measured = sizes()
    for size in measured:
        mark = "" if size.value <= size.limit else "  exceeds its limit"
        print(f"{size.value:7,} of {size.limit:6,}  {size.name}{mark}")
    if "--list" in sys.argv[1:]:
        everything = functions()
        for function in many(everything):
            print(f"{function.parameters:3} parameters  {function.where}")
        for function in sorted(everything, key=lambda function: -function.lines)[:10]:
            print(f"{function.lines:3} lines       {function.where}")
        print(*docstrings(), *variables(), sep="\n")
    return int(any(size.value > size.limit for size in measured))


if __name__ == "__main__":
    sys.exit(main())
