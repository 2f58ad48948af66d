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

AS_IT_STANDS = ""
SERVER = "timeout 30"  # in front: it has to be at work until it is ended, which is status 124

# A command -> what is typed; in the order in which they are.
TRIED = {
    "make quickstart": "make -n quickstart",
    "make install": "make -n install",
    "make docs": "make -n docs",
    "make format": "make -n format",
    "make licences": "make -n licences",
    'python -m pytest -m "" tests/training/test_fit.py': (
        'python -m pytest -m "" tests/training/test_fit.py --collect-only'
    ),
    "make test": "make -n test",
    "make protocols": "make -n protocols",
    "make ablations": "make -n ablations",
    "make bench": "make -n bench",
    "make bench ONLY=distillation": "make -n bench ONLY=distillation",
    "make check": "make -n check",
    "make test-slow": "make -n test-slow",
    "make test-ci": "make -n test-ci",
    "make faults": "make -n faults",
    "make load": "make -n load",
    "make audit": "make -n audit",
    "make sbom": "make -n sbom",
    "dvc repro evaluate@embedded_greek": AS_IT_STANDS,
    "dvc repro": "dvc repro --dry evaluate@embedded_greek",
    "dvc exp run -S student.lr=0.001": "dvc exp run --help",
    "dvc repro code && dvc status": AS_IT_STANDS,
    "dvc metrics show": AS_IT_STANDS,
    "dvc plots show": AS_IT_STANDS,
    "dvc plots diff HEAD~1 HEAD": AS_IT_STANDS,
    "dvc plots show -t confusion_matrix data/evaluate/embedded_greek/predictions.json": (
        AS_IT_STANDS
    ),
    "mlflow ui --backend-store-uri sqlite:///mlflow.db": SERVER,
    "python -m flows.benchmark": "python -m flows.benchmark --help",
    "promptkd benchmark": "promptkd benchmark --help",
    "promptkd repro": "promptkd repro evaluate@embedded_greek",
    "promptkd repro --pull": "promptkd repro --help",
    "promptkd push": "promptkd push --help",
    "promptkd page": AS_IT_STANDS,
    "promptkd page --record": AS_IT_STANDS,
    "promptkd compare HEAD~1 HEAD": AS_IT_STANDS,
    "promptkd doctor": AS_IT_STANDS,
    "promptkd data list": AS_IT_STANDS,
    "cd protocols && dvc repro cross_dataset@embedded_greek-2": (
        "cd protocols && dvc stage list | grep cross_dataset@embedded_greek-2"
    ),
    "cd paper/protocols && dvc repro": "cd paper/protocols && dvc stage list",
    "cd paper && dvc repro": "cd paper && dvc dag",
    "promptkd protocols show": AS_IT_STANDS,
    "promptkd ablation show": AS_IT_STANDS,
    "dvc repro evaluate@embedded_digits": "dvc stage list | grep evaluate@embedded_digits",
    "promptkd data verify my_photos": AS_IT_STANDS,
    "promptkd data fingerprint my_photos": AS_IT_STANDS,
    "dvc repro evaluate@my_photos": "dvc stage list | grep evaluate@my_photos",
    "promptkd data verify my_digits": AS_IT_STANDS,
    "promptkd data fingerprint my_digits": AS_IT_STANDS,
    "dvc repro cross_validate@my_digits": "dvc stage list | grep cross_validate@my_digits",
    "dvc repro evaluate@my_digits": "dvc stage list | grep evaluate@my_digits",
    "promptkd data fetch dtd eurosat": "promptkd data fetch --plan dtd eurosat",
    "promptkd data fetch --plan": "promptkd data fetch --plan dtd",
    "promptkd data verify dtd eurosat": "promptkd data verify --help",
    "promptkd data verify <name>": "promptkd data verify --help",
    "promptkd data fingerprint <name>": "promptkd data fingerprint --help",
    "promptkd data fingerprint dtd eurosat": "promptkd data fingerprint --help",
    "promptkd data mirror push|pull dtd": "promptkd data mirror push --help",
    "promptkd weights mirror": "promptkd weights mirror --help",
    "promptkd weights fetch": "promptkd weights fetch --help",
    "promptkd import-teacher model.pth.tar-20": "promptkd import-teacher --help",
    "promptkd import-student": "promptkd import-student --help",
    "promptkd registry register": AS_IT_STANDS,
    "promptkd registry promote": "promptkd registry promote --help",
    "promptkd classes add": "promptkd classes add --help",
    "promptkd registry promote embedded_greek": AS_IT_STANDS,
    "promptkd registry history|show": "promptkd registry history embedded_greek",
    "promptkd predict embedded_greek picture.png": AS_IT_STANDS,
    "promptkd serve embedded_greek": SERVER,
    "promptkd serve": "promptkd serve --help",
    "promptkd serve --help": AS_IT_STANDS,
    'promptkd classes add embedded_greek "greek small letter digamma"': AS_IT_STANDS,
    "promptkd registry rollback embedded_greek": (
        "promptkd registry promote embedded_greek && promptkd registry rollback embedded_greek"
    ),
    "promptkd compare embedded_greek/1 embedded_greek@champion": AS_IT_STANDS,
    "promptkd compare": "promptkd compare --help",
    "dvc pull teacher@...": "dvc pull --help",
    "python -m flows.refresh": "python -m flows.refresh --help",
    "python -m flows.promote": "python -m flows.promote --help",
    "python -m flows.monitor": "python -m flows.monitor --help",
    "python -m flows.monitor http://127.0.0.1:8000": "python -m flows.monitor --help",
    "python -m flows.server": "python -m flows.server --help",
    "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db": AS_IT_STANDS,
    "export PD_PREFECT_API_URL=http://127.0.0.1:4200/api": AS_IT_STANDS,
    "python -m flows.agent --gpu 0": "python -m flows.agent --help",
    "python -m flows.agent": "python -m flows.agent --help",
    "prefect deployment run benchmark/quickstart": "prefect deployment run --help",
    "mlflow models serve": "mlflow models serve --help",
    "mlflow server --artifacts-destination s3://...": "mlflow server --help",
}
# What cannot work after one run of one data set is refused in one line.
REFUSED = {"promptkd compare HEAD~1 HEAD": "error: no metrics of revision 'HEAD~1' can be read"}
ELSEWHERE = {
    "curl": "tests/mlops/test_service.py",
    "docker": "tests/project/test_containers.py",
    "mlflow models serve -m": "tests/project/test_end_to_end.py",
}


def test_every_command_of_the_documentation_is_tried() -> None:
    named = [line for line in commands() if not line.startswith(tuple(ELSEWHERE))]
    assert [command for command in named if command not in TRIED] == []
    assert [command for command in TRIED if command not in named] == []


@pytest.fixture(scope="module")
def place(benchmark_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone with the stages' results, the environment, and the examples' images."""
    folder = tmp_path_factory.mktemp("typed") / "promptkd"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    shutil.copytree(benchmark_project / ".dvc" / "cache", folder / ".dvc" / "cache")
    shutil.copy(benchmark_project / "dvc.lock", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    status, output = shell(folder, "dvc repro evaluate@embedded_greek")
    assert status == 0, output
    assert "Running stage" not in output
    with zipfile.ZipFile(folder / "data/prepare/embedded_greek/images.zip") as archive:
        (folder / "picture.png").write_bytes(archive.read("test/000/000.png"))
    digits = block("python", "load_digits")
    subprocess.run([sys.executable, "-c", digits], cwd=folder, check=True)
    shutil.copytree(folder / "data/raw/my_digits", folder / "data/raw/my_photos")
    return folder


def shell(folder: Path, command: str) -> tuple[int, str]:
    """Type a command in a plain shell; return its status and what it printed."""
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
    for command, instead in TRIED.items():
        typed = f"{SERVER} {command}" if instead == SERVER else instead or command
        for name in ("my_digits", "my_photos"):
            if name in command:
                typed = _with_example(place, name, typed)
        status, output = shell(place, typed)
        lines = output.strip().splitlines()
        rows.append(f"{status:>3}  {typed}\n     {lines[-1] if lines else ''}")
        (place / "typed.txt").write_text("\n".join(rows))
        if command in REFUSED:
            assert (status, len(lines)) == (2, 1), output
            assert output.startswith(REFUSED[command])
            continue
        expected = 124 if instead == SERVER else 0
        assert status == expected, f"{typed}\n{output}"
        assert "Traceback" not in output


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
