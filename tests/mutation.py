"""Mutation testing of the core modules: `make mutation`; `mutation.md` says what came out.

mutmut works on a copy in `build/mutation`, where it also finds what it did before, so that only
what has changed is tested again. It passes over functions with decorators, so the copy has
`total = property(total)` behind a function in place of `@property` before it.
"""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPY = ROOT / "build" / "mutation"
COPIED = ("pd_core", "tests", "pyproject.toml", "params.yaml", "paper/params.yaml")

LEAST_COVERAGE = 95  # percent of the lines
LEAST_SCORE = 85  # percent of the mutants
KILLED = frozenset({"killed", "timeout", "segfault"})


def main() -> int:
    """Measure coverage, run all mutants that have not been run, print the table and the rest."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    modules: list[str] = config["only_mutate"]
    print_coverage(modules, config["pytest_add_cli_args_test_selection"])
    update_copy(modules)
    mutmut("run", "--max-children", os.environ.get("JOBS", "1"))
    results = read_results()
    for name in (name for name, status in results.items() if status not in KILLED):
        say(mutmut("show", name, quiet=True))
    score = print_table(results)
    return 0 if score >= LEAST_SCORE else 1


def print_coverage(modules: list[str], tests: list[str]) -> None:
    """Run the tests with coverage.py and print its report; too low ends the program."""
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={ROOT / 'build' / 'coverage'}"
    include = f"--include={','.join(modules)}"
    subprocess.run([*coverage, "run", data, include, "-m", "pytest", *tests], cwd=ROOT, check=True)
    report = [*coverage, "report", data, "--show-missing", f"--fail-under={LEAST_COVERAGE}"]
    subprocess.run(report, cwd=ROOT, check=True)


def update_copy(modules: list[str]) -> None:
    """Bring the copy up to date; mutmut keeps files of its own that are left as they are."""
    for source in _sources():
        name = source.relative_to(ROOT)
        content = source.read_bytes()
        if str(name) in modules:
            content = undecorated(content.decode()).encode()
        target = COPY / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            (COPY / "mutants" / name).unlink(missing_ok=True)


def _sources() -> Iterator[Path]:
    for entry in COPIED:
        files = [ROOT / entry] if (ROOT / entry).is_file() else sorted((ROOT / entry).rglob("*"))
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def undecorated(source: str) -> str:
    """Apply the decorators of functions behind them instead of before them."""
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: node.lineno, reverse=True):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if not decorators or decorators == ["classmethod"]:
            continue
        made = node.name
        for decorator in reversed(decorators):
            made = f"{decorator}({made})"
        assert node.end_lineno is not None
        lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {made}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def mutmut(*arguments: str, quiet: bool = False) -> str:
    """Run a command of mutmut in the copy; return what it prints, if it is to be quiet."""
    program = shutil.which("mutmut", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        raise SystemExit("mutmut is not installed: pip install -c constraints.txt -e '.[dev]'")
    output = subprocess.PIPE if quiet else None
    done = subprocess.run([program, *arguments], cwd=COPY, check=True, stdout=output, text=True)
    return done.stdout or ""


def read_results() -> dict[str, str]:
    """Return what became of each mutant, by its name."""
    lines = mutmut("results", "--all", "true", quiet=True).splitlines()
    pairs = (line.strip().split(": ") for line in lines if ": " in line)
    return dict(pairs)


def print_table(results: dict[str, str]) -> float:
    """Print mutants and score by module; return the score of all, percent."""
    mutants, killed = Counter[str](), Counter[str]()
    for name, status in results.items():
        module = name.rpartition(".")[0]
        mutants[module] += 1
        killed[module] += status in KILLED
    say("| module | mutants | killed | score |\n|---|---:|---:|---:|")
    rows = [(module, mutants[module], killed[module]) for module in sorted(mutants)]
    for module, count, dead in [*rows, ("all", mutants.total(), killed.total())]:
        say(f"| {module} | {count} | {dead} | {100 * dead / count:.1f}% |")
    return 100 * killed.total() / mutants.total()


def say(text: str) -> None:
    """Print a text."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
