"""A stage depends on all of its code and on nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pd_core.pipeline import code_hash
from pd_core.pipeline.code_hash import PACKAGE, ROOMS, STAGES, files
from pd_core.pipeline.provenance import content_hash
from pd_core.pipeline.stages.params import load_params

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {
    "prepare": "data.catalog.prepare",
    "teacher": "training.teacher.stage",
    "class_vectors": "training.teacher.class_vectors",
    "student": "training.student.stage",
    "evaluate": "evaluation.evaluate",
    "cross_validate": "evaluation.cross_validate",
    "tuned_student": "evaluation.tuned_student",
    "report": "reporting.report",
}
"""Module of each stage."""


def stage(name: str) -> dict[str, Any]:
    block: dict[str, Any] = PIPELINE[name].get("do", PIPELINE[name])
    return block


def rooms_in(deps: list[str]) -> set[str]:
    return {Path(dep).stem for dep in deps if dep.startswith("data/code/")}


def statements(path: Path) -> bool:
    """Return True if a file has more than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports at run time, near the top or inside functions."""
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        for node in ast.iter_child_nodes(queue.pop()):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            queue.append(node)
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(module: str) -> set[Path]:
    """Return the files that a module of the package imports, near and far."""
    reached: set[Path] = set()
    queue = [f"pd_core.{module}"]
    while queue:
        path = ROOT / Path(*queue.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_file() and path not in reached and path != PACKAGE / "__init__.py":
            reached.add(path)
            queue += [name for name in imports(path) if name.startswith("pd_core.")]
    return {path for path in reached if statements(path)}


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_imports_lies_within_its_rooms(name: str) -> None:
    within = {path for room in STAGES[name] for path in files(room)}
    assert closure(MODULES[name]) - within == set()


def test_dvc_depends_on_the_rooms_of_each_stage() -> None:
    assert set(PIPELINE) == {"code", *STAGES}
    for name, rooms in STAGES.items():
        assert rooms_in(stage(name)["deps"]) == set(rooms)


@pytest.mark.parametrize("project", ["protocols", "ablations"])
def test_the_stages_of_other_projects_depend_on_the_rooms_of_the_stages_that_they_run(
    project: str,
) -> None:
    stages = yaml.safe_load((ROOT / project / "dvc.yaml").read_text())["stages"]
    assert "code" in stages
    for name in stages.keys() - {"code"}:
        block = stages[name].get("do", stages[name])
        commands = block["cmd"] if isinstance(block["cmd"], list) else [block["cmd"]]
        verbs = [line.split("python3 -m pd_core ")[1].split()[0] for line in commands]
        needed = {room for verb in verbs for room in STAGES.get(verb.replace("-", "_"), ())}
        rooms = rooms_in(block["deps"])
        assert rooms, name
        assert needed <= rooms <= set(ROOMS), name


@pytest.mark.parametrize(
    ("project", "module"),
    [("protocols", "reporting.protocol_report"), ("ablations", "reporting.ablation_report")],
)
def test_what_the_report_of_a_project_imports_lies_within_its_rooms(
    project: str, module: str
) -> None:
    stages = yaml.safe_load((ROOT / project / "dvc.yaml").read_text())["stages"]
    within = {path for room in rooms_in(stages["report"]["deps"]) for path in files(room)}
    assert closure(module) - within == set()


def test_everything_that_decides_a_result_is_in_a_room() -> None:
    inside = {path for room in ROOMS for path in files(room)}
    for folder in ("core", "models", "data/loading", "data/catalog", "training", "evaluation"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert path in inside or not statements(path)
    assert PACKAGE / "models" / "weights" / "merges.txt.gz" in files("models")
    assert PACKAGE / "data" / "catalog" / "class_names.json" in files("catalog")


def test_every_stage_depends_on_its_weights_and_the_preparation_on_the_fingerprint() -> None:
    for name in ("teacher", "class_vectors", "student", "evaluate", "cross_validate"):
        assert "${teacher.weights}" in stage(name)["deps"]
    for name in ("student", "evaluate", "cross_validate", "tuned_student"):
        assert "${student.weights}" in stage(name)["deps"]
    assert "${teacher.weights}" not in stage("tuned_student")["deps"]
    assert "${profile.root}/fingerprints/${key}.json" in stage("prepare")["deps"]


def test_dvc_lists_every_parameter_of_the_teacher_that_can_change_its_result() -> None:
    listed = {
        key
        for entry in stage("teacher")["params"]
        if isinstance(entry, dict)
        for keys in entry.values()
        for key in keys
    }
    block = load_params(ROOT / "params.yaml").teacher.model_dump()
    assert {f"teacher.{key}" for key in block} - listed == {"teacher.text_memory_gb"}
    assert {key for key in listed if key.startswith("teacher.")} <= {f"teacher.{k}" for k in block}


SOURCE = '''"""A module."""

RATE = 0.1  # of learning
"""A rate."""


def step(rate: float = RATE) -> float:
    """Step."""
    return 2 * rate
'''


def syntax(source: str) -> str:
    return code_hash._syntax(source.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# of learning", "# of unlearning"),
        ('"""A module."""', '"""Another\n\nmodule."""'),
        ('    """Step."""\n', ""),
        ("2 * rate", "(2 * rate)"),
        ("\n\n\n", "\n\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old: str, new: str) -> None:
    assert syntax(SOURCE.replace(old, new)) == syntax(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1", "'0.1'"),
        ("2 * rate", "rate * 2"),
        ("2 * rate", "2 * -rate"),
        (" = RATE", " = None"),
        ("float =", "int ="),
        ("def step", "async def step"),
        ("return 2", 'return "a" + 2'),
    ],
)
def test_every_change_of_a_statement_counts(old: str, new: str) -> None:
    assert syntax(SOURCE.replace(old, new)) != syntax(SOURCE)
    assert syntax("print('a')") != syntax("print('b')")


def test_a_room_has_a_line_a_file_and_data_files_count_byte_by_byte(tmp_path: Path) -> None:
    code_hash.write(tmp_path)

    lines = (tmp_path / "catalog.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        path.relative_to(PACKAGE.parent).as_posix() for path in files("catalog")
    ]
    assert "pd_core/data/catalog/class_names.json" in lines[-1] + "".join(lines)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(ROOMS)


def test_the_code_of_a_commit_is_hashed_as_that_of_the_working_tree() -> None:
    root = PACKAGE.parent
    paths = [path for path in PACKAGE.rglob("*") if path.is_file()]
    package = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    for room in ROOMS:
        assert code_hash.listing_of(room, package) == code_hash.listing(room)


def test_runs_are_tagged_with_the_hashes_of_the_files_that_dvc_has(tmp_path: Path) -> None:
    code_hash.write(tmp_path)
    for path, value in code_hash.file_hashes("teacher", tmp_path).items():
        assert content_hash(Path(path)) == value


def test_all_projects_see_the_package_through_a_link_without_its_bytecode() -> None:
    nested = [path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("paper/*/dvc.yaml")]
    for folder in ("paper", "protocols", "ablations", *nested):
        assert (ROOT / folder / "pd_core").resolve() == PACKAGE
        assert "__pycache__/" in (ROOT / folder / ".dvcignore").read_text()
