"""Six commands, from a wheel and a folder of photos to predictions, in an environment of its own.

The wheel is built and installed as a user does it. The packages that it needs are those of this
environment, so that nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import photos
import pytest
import requests
from documents import ROOT, commands
from waiting import free_port, wait_until

NAME = "my_photos"
EMBEDDED = " --teacher embedded-teacher --student embedded-student"
NEW, REPRO, PROMOTE, SERVE, PREDICT = (
    next(line for line in commands() if line.startswith(start))
    for start in (
        f"promptkd new {NAME}", f"cd {NAME}", f"promptkd registry promote {NAME}",
        f"promptkd serve {NAME}", f"promptkd predict {NAME}",
    )
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, and an environment with the package from its wheel."""
    folder = tmp_path_factory.mktemp("own")
    photos.write(folder / "photos", labelled=12, test=15, unlabelled=40)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-build-isolation", *offline, "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *wheel], check=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    # A path of this file's lines is read without the .pth files in it, such as that of our clone.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    (file,) = folder.glob("promptkd-*.whl")
    subprocess.run([*pip, "--python", str(venv), "install", *offline, str(file)], check=True)
    return folder


def environment(place: Path) -> dict[str, str]:
    paths = [place / "venv" / "bin", Path(sys.executable).parent, "/usr/bin", "/bin"]
    return {
        "PATH": os.pathsep.join(map(str, paths)), "HOME": str(place),
        "GIT_CONFIG_NOSYSTEM": "1", "DVC_NO_ANALYTICS": "1",
    }  # fmt: skip


def typed(place: Path, command: str, folder: str = "") -> str:
    """Type a command in a shell of the environment; return its output."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=place / folder, env=environment(place),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def project(place: Path) -> Path:
    """Make the project, run all stages and promote the student."""
    assert f"{NAME}: ok, 4 classes, 48 train, 0 validation and 60 test" in typed(
        place, NEW + EMBEDDED
    )
    assert "Running stage 'report'" in typed(place, REPRO)
    promoted = typed(place, PROMOTE, NAME)
    assert f"version 1 of 'promptkd-{NAME}' is champion, after none" in promoted
    return place / NAME


@pytest.fixture
def service(place: Path, project: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [*SERVE.split(), "--port", str(port)], cwd=project, env=environment(place),
        executable=place / "venv" / "bin" / "promptkd", stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_up(url), "the service is up", process, seconds=120)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/model", timeout=30).ok
    except requests.RequestException:
        return False


def test_the_student_is_served_and_predicts_photos(
    place: Path, project: Path, service: str
) -> None:
    file = sorted((place / "photos" / "test" / "digit zero").iterdir())[0]
    served = requests.post(f"{service}/predict?top=1", file.read_bytes(), timeout=60).json()
    rows = json.loads(typed(place, f"{PREDICT} --json 2>/dev/null", NAME))
    assert len(rows) == 4 * (12 + 15 + 40)
    (row,) = (row for row in rows if row["image"].endswith(f"test/digit zero/{file.name}"))
    assert row["predictions"][0]["name"] == served["predictions"][0]["name"]
    assert project.is_dir()


def test_the_package_is_that_of_the_wheel_and_nothing_is_wrong(place: Path, project: Path) -> None:
    where = typed(place, "python3 -c 'import pd_core, flows; print(pd_core.__file__)'", NAME)
    assert where.startswith(str(place / "venv"))
    assert "wrong " not in typed(place, "promptkd doctor", NAME)
    again = typed(place, "dvc repro", NAME)
    assert again.count("Running stage") == 1  # `code`
    assert project.is_dir()


def test_another_version_of_the_package_runs_the_stages_again(place: Path, project: Path) -> None:
    (module,) = (place / "venv").glob("lib/python*/site-packages/pd_core/training/student/stage.py")
    before = module.read_text()
    module.write_text(f"{before}\nCHANGED = True\n")
    try:
        typed(place, "dvc repro code", NAME)
        changed = json.loads(typed(place, "dvc status --json", NAME))
    finally:
        module.write_text(before)
    assert f"student@{NAME}" in changed
    assert f"teacher@{NAME}" not in changed
    assert project.is_dir()


def test_flows_are_deployed_from_the_wheel(place: Path, project: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [place / "venv" / "bin" / "python3", "-m", "flows.server", "--port", str(port)],
        cwd=project, env=environment(place), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert any(line.startswith("ready at") for line in server.stdout)
        url = f"http://127.0.0.1:{port}/api/deployments/name/benchmark/all"
        schema = requests.get(url, timeout=30).json()["parameter_openapi_schema"]
        assert NAME in json.dumps(schema)
    finally:
        server.terminate()
        server.communicate(timeout=60)
