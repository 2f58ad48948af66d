"""Each command that the documentation names, typed in a plain shell after the stages have run.

The shell has no environment; its first line is the one that README and `promptkd show` give for it.
What takes hours, downloads or needs Docker is typed in a form that does not.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from documents import ROOT, block, commands

# Typed with `--help` behind it.
HELP = (
    "dvc exp run -S ++datasets.embedded_greek.student.lr=0.001",
    "dvc exp run -S student.lr=0.001",
    "dvc exp run",
    "dvc exp run --temp",
    "dvc fetch --all-commits",
    "dvc pull teacher@...",
    "mlflow experiments restore",
    "mlflow models serve",
    "mlflow server",
    "mlflow server --artifacts-destination s3://...",
    "mlflow ui",
    "prefect deployment run benchmark/quickstart",
    "prefect deployment run tune/agents -p dataset=embedded_greek -p trials=30",
    "promptkd benchmark",
    "promptkd classes add",
    "promptkd compare",
    "promptkd curve",
    "promptkd data label",
    "promptkd data fingerprint dtd eurosat",
    "promptkd data verify",
    "promptkd data verify --full",
    "promptkd data verify dtd eurosat",
    "promptkd export",
    "promptkd import-student",
    "promptkd import-teacher model.pth.tar-20",
    "promptkd models show",
    "promptkd new",
    "promptkd predict",
    "promptkd push",
    "promptkd registry promote",
    "promptkd registry show",
    "promptkd rehearse",
    "promptkd rehearse embedded_greek",
    "promptkd repro --pull",
    "promptkd serve",
    "promptkd suggest",
    "promptkd tune",
    "promptkd tune embedded_greek",
    "promptkd tune embedded_greek --apply",
    "promptkd weights fetch",
    "promptkd weights mirror",
    "python -m flows.agent",
    "python -m flows.agent --gpu 0",
    "python -m flows.benchmark",
    "python -m flows.monitor",
    "python -m flows.monitor http://127.0.0.1:8000",
    "python -m flows.promote",
    "python -m flows.refresh",
    "python -m flows.server",
    "python -m flows.tune",
)
# At work until they are ended.
SERVERS = ("mlflow ui --backend-store-uri sqlite:///mlflow.db", "promptkd serve embedded_greek")
INSTEAD = {
    "cd paper && dvc repro": "cd paper && dvc dag",
    "cd paper/the_professor && dvc repro": "cd paper/the_professor && dvc dag",
    "cd paper/protocols && dvc repro": "cd paper/protocols && dvc stage list",
    "cd protocols && dvc repro cross_dataset@embedded_greek-2": (
        "cd protocols && dvc stage list | grep cross_dataset@embedded_greek-2"
    ),
    "dvc repro": "dvc repro --dry evaluate@embedded_greek",
    "dvc repro cross_validate@my_digits": "dvc stage list | grep cross_validate@my_digits",
    "dvc repro evaluate@embedded_digits": "dvc stage list | grep evaluate@embedded_digits",
    "dvc repro evaluate@my_digits": "dvc stage list | grep evaluate@my_digits",
    "promptkd doctor --profile paper": "promptkd doctor --profile paper --help",
    "promptkd data fetch --plan": "promptkd data fetch --plan dtd eurosat",
    "promptkd data fetch dtd eurosat": "promptkd data fetch --plan dtd eurosat",
    "promptkd data fingerprint <name>": "promptkd data fingerprint --help",
    "promptkd data mirror push|pull dtd": "promptkd data mirror push --help",
    "promptkd data verify <name>": "promptkd data verify --help",
    "promptkd registry promote embedded_greek/<version>": (
        "promptkd registry promote embedded_greek/1"
    ),
    "promptkd registry history|show": "promptkd registry history embedded_greek",
    "promptkd registry rollback embedded_greek": (
        "promptkd registry promote embedded_greek && promptkd registry rollback embedded_greek"
    ),
    "promptkd repro": "promptkd repro evaluate@embedded_greek",
    'python -m pytest -m "" tests/training/test_fit.py': (
        'python -m pytest -m "" tests/training/test_fit.py --collect-only'
    ),
}
ELSEWHERE = {
    "curl": "tests/mlops/test_service.py",
    "docker": "tests/project/test_containers.py",
    "mlflow models serve -m": "tests/project/test_end_to_end.py",
    "cd my_photos": "tests/project/test_own_project.py",
    **dict.fromkeys(
        (
            "dvc exp run --queue",
            "dvc exp show",
            "dvc exp apply",
            "dvc exp branch",
            "dvc exp remove",
            "dvc get",
            "dvc queue",
            "dvc plots diff HEAD <",
            "dvc pull && dvc repro --allow-missing",
            "promptkd compare HEAD <",
            "promptkd predict my_photos ../photos --weights",
        ),
        "tests/project/test_dvc_user.py",
    ),
    **dict.fromkeys(
        (
            "prefect server start",
            "prefect work-pool create",
            "prefect deploy --all",
            "prefect worker",
        ),
        "tests/flows/test_plain_prefect.py",
    ),
    "promptkd serve embedded_greek --host": "tests/mlops/test_service_http.py",
    "promptkd serve embedded_greek --precision": "tests/mlops/test_quantize.py",
    "promptkd data add more_photos": "tests/cli/test_new_project.py",
    "promptkd curve my_photos": "tests/labelling/test_curve.py",
    "promptkd data label my_photos": "tests/labelling/test_labels.py",
    "promptkd new my_photos": "tests/project/test_own_project.py",
    "promptkd predict my_photos": "tests/project/test_own_project.py",
    "promptkd registry promote my_photos": "tests/project/test_own_project.py",
    "promptkd serve my_photos": "tests/project/test_own_project.py",
    "promptkd suggest my_photos": "tests/labelling/test_suggest.py",
    "python -m pip wheel": "tests/project/test_own_project.py",
}
NAMED = [line for line in commands() if not line.startswith(tuple(ELSEWHERE))]


def test_every_exception_is_a_command_of_the_documentation() -> None:
    assert {*HELP, *SERVERS, *INSTEAD} - {*NAMED} == set()


@pytest.fixture(scope="module")
def place(benchmark_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone with the stages' results, the environment, and the examples' images."""
    folder = tmp_path_factory.mktemp("typed") / "promptkd"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    shutil.copytree(benchmark_project / ".dvc" / "cache", folder / ".dvc" / "cache")
    shutil.copy(benchmark_project / "dvc.lock", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    status, output = shell(
        folder, "dvc repro evaluate@embedded_greek && promptkd registry register"
    )
    assert status == 0, output
    assert "Running stage" not in output
    with zipfile.ZipFile(folder / "data/prepare/embedded_greek/images.zip") as archive:
        (folder / "picture.png").write_bytes(archive.read("test/000/000.png"))
    (folder / "photos").mkdir()
    shutil.copy(folder / "picture.png", folder / "photos")
    digits = block("python", "load_digits")
    subprocess.run([sys.executable, "-c", digits], cwd=folder, check=True)
    return folder


def shell(folder: Path, command: str) -> tuple[int, str]:
    """Type a command in a plain shell; return its status and output."""
    done = subprocess.run(
        ["bash", "-c", f"source .venv/bin/activate; {command}"],
        cwd=folder,
        env={"HOME": str(folder.parent), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(1800)
def test_every_command_works_as_it_stands(place: Path) -> None:
    rows = []
    for command in NAMED:
        typed = _typed(place, command)
        status, output = shell(place, typed)
        lines = output.strip().splitlines()
        rows.append(f"{status:>3}  {typed}\n     {lines[-1] if lines else ''}")
        (place / "typed.txt").write_text("\n".join(rows))
        expected = 124 if command in SERVERS else 0
        assert status == expected, f"{typed}\n{output}"
        assert "Traceback" not in output


def _typed(place: Path, command: str) -> str:
    if command.startswith("make "):
        return command.replace("make", "make -n", 1)
    if command in HELP:
        return f"{command} --help"
    if command in SERVERS:
        return f"timeout 30 {command}"  # ends with status 124
    typed = INSTEAD.get(command, command)
    return _with_example(place, "my_digits", typed) if "my_digits" in command else typed


def _with_example(place: Path, name: str, typed: str) -> str:
    """Put the row of an example into `params.yaml` while a command runs."""
    row = block("yaml", name)
    text = (place / "params.yaml").read_text()
    text = text.replace("\ndatasets:\n", f"\ndatasets:\n{row}", 1)
    text = text.replace("\ncross_validate: {}", f"\ncross_validate: {{{name}: {{}}}}", 1)
    (place / "params.own.yaml").write_text(text)
    assert name in yaml.safe_load(text)["datasets"]
    own = "cp params.yaml params.saved && cp params.own.yaml params.yaml"
    return f"{own}; ({typed}); status=$?; mv params.saved params.yaml; exit $status"
