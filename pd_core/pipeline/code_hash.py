"""Which code a stage runs: the modules of this package that its module imports, near and far."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = "pd_core"
STAGE_MODULES = {
    "prepare": "pd_core.data.catalog.prepare",
    "teacher": "pd_core.training.teacher.stage",
    "class_vectors": "pd_core.models.class_vectors",
    "student": "pd_core.training.student.stage",
    "tuned_student": "pd_core.evaluation.tuned_student",
    "evaluate": "pd_core.evaluation.cross_validate",  # which imports evaluate
    "report": "pd_core.reporting.report",
    "ablation_report": "pd_core.reporting.ablation_report",
    "protocol_report": "pd_core.reporting.protocol_report",
}
"""The module that holds each stage's work. The command line around it is not part of a result."""


def stage_code(stage: str) -> tuple[Path, ...]:
    """Return the files whose change could change a stage's outputs, sorted."""
    return code_of(STAGE_MODULES[stage])


def code_of(module: str) -> tuple[Path, ...]:
    """Return the files of a module and of those that it imports, near and far, sorted."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue.extend(_imports(name))
    return tuple(sorted(_file(name) for name in seen))


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the package's modules that a module imports, wherever in its text.

    Imports for type checkers alone are left out: they do not run.
    """
    found: set[str] = set()
    for node in _running_nodes(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name for name in found if name.split(".")[0] == PACKAGE and name != PACKAGE}
    return frozenset(name for name in inside if _is_module(name) and _file(name).stat().st_size)


def _running_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        nodes.append(child)
        nodes.extend(_running_nodes(child))
    return nodes


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _file(module: str) -> Path:
    path = _root().joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).is_file()
