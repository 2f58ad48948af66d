"""Hashes of the code of each stage, over its syntax tree without comments and docstrings.

The package is hashed by rooms. The DVC stage `code` writes one small file per room, on which the
other stages depend; the same hashes are part of the keys of checkpoints and cached features.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import md5, sha256
from pathlib import Path

from pd_core.core.atomic import write_folder

CODE = "code"
"""Name of the stage and of its output folder."""

PACKAGE = Path(__file__).resolve().parents[1]

ROOMS = {
    "core": ("core",),
    "models": ("models", "models/weights/merges.txt.gz"),
    "loading": ("data/loading",),
    "catalog": ("data/catalog", "data/catalog/class_names.json"),
    "loop": ("training/loop",),
    "teacher": ("training/teacher",),
    "student": ("training/student",),
    "evaluation": ("evaluation",),
    "stages": ("pipeline/stages",),
    "protocols": ("pipeline/protocols.py",),
    "ablations": ("pipeline/ablations.py",),
    "results": ("reporting/results.py", "reporting/tables.py", "reporting/figures.py"),
    "report": ("reporting/report.py",),
    "protocol_report": (
        "reporting/protocol_report.py",
        "reporting/protocol_summary.py",
        "reporting/outliers.py",
    ),
    "ablation_report": ("reporting/ablation_report.py",),
}
"""Folders (all their modules) and single files of the package, by room."""

_TRAINING = ("core", "models", "loading", "loop", "stages")
STAGES = {
    "prepare": ("core", "loading", "catalog", "stages"),
    "teacher": (*_TRAINING, "teacher"),
    "class_vectors": ("core", "models", "loading", "teacher", "stages"),
    "student": (*_TRAINING, "student"),
    "evaluate": ("core", "models", "loading", "evaluation", "stages"),
    "cross_validate": (*_TRAINING, "teacher", "student", "evaluation"),
    "tuned_student": (*_TRAINING, "teacher", "evaluation"),
    "report": ("core", "models", "loading", "results", "report"),
}
"""Rooms that determine the outputs of each stage: its code, and the mapping of parameters."""


def write(folder: Path) -> None:
    """Write `<room>.txt` for each room into a folder, one line per file."""
    with write_folder(folder) as new:
        for room in ROOMS:
            (new / f"{room}.txt").write_text(listing(room), encoding="utf-8")


def is_current(folder: Path) -> bool:
    """Return True if a folder has the present output of `write`."""
    return all(
        (file := folder / f"{room}.txt").is_file() and file.read_text("utf-8") == listing(room)
        for room in ROOMS
    )


def file_hashes(stage: str, folder: Path) -> dict[str, str]:
    """Return the MD5 of the files of a stage's rooms that `write` writes, by path."""
    return {(folder / f"{room}.txt").as_posix(): md5_of(listing(room)) for room in STAGES[stage]}


def md5_of(text: str) -> str:
    """Return the MD5 that DVC records for a file with this text."""
    return md5(text.encode(), usedforsecurity=False).hexdigest()


def of_stage(stage: str) -> dict[str, str]:
    """Return the SHA-256 of each room of a stage."""
    return {room: sha256(listing(room).encode()).hexdigest() for room in STAGES[stage]}


def listing(room: str) -> str:
    """Return a room's lines, `<SHA-256>  <file>`, sorted by file."""
    return "".join(
        f"{_hash(path)}  {path.relative_to(PACKAGE.parent).as_posix()}\n" for path in files(room)
    )


def listing_of(room: str, package: Mapping[str, bytes]) -> str:
    """Return the lines of `listing` for another state of the package.

    Args:
        room: one of `ROOMS`.
        package: content of each file by its path, from `pd_core/` on.
    """
    inside = sorted(Path(name) for name in package if _is_in(room, name))
    hashes = {path.as_posix(): _digest(path, package[path.as_posix()]) for path in inside}
    return "".join(f"{value}  {name}\n" for name, value in hashes.items())


def _is_in(room: str, name: str) -> bool:
    for entry in ROOMS[room]:
        path = f"{PACKAGE.name}/{entry}"
        if name == path or (name.startswith(f"{path}/") and name.endswith(".py")):
            return True
    return False


def files(room: str) -> list[Path]:
    """Return the files of a room, sorted."""
    paths: set[Path] = set()
    for name in ROOMS[room]:
        path = PACKAGE / name
        paths |= {*path.rglob("*.py")} if path.is_dir() else {path}
    return sorted(paths)


@cache
def _hash(path: Path) -> str:
    return _digest(path, path.read_bytes())


def _digest(path: Path, data: bytes) -> str:
    return sha256(_syntax(data).encode() if path.suffix == ".py" else data).hexdigest()


def _syntax(source: bytes) -> str:
    return " ".join(_tokens(ast.parse(source)))


def _tokens(value: object) -> Iterator[str]:
    """Yield the tokens of a syntax tree, which are the same for all versions of Python.

    Empty fields are omitted, since later versions add some.
    """
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name, field in ast.iter_fields(value):
            if field is not None and field != []:
                yield name
                yield from _tokens(field)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            if not _is_docstring(item):
                yield from _tokens(item)
        yield "]"
    else:
        yield repr(value)


def _is_docstring(node: object) -> bool:
    """Return True for the docstring of a module, class, function or attribute."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
