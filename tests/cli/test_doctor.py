"""`promptkd doctor` finds what is wrong, says how to mend it, and never hangs."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner, Result

from pd_core.cli import doctor as command
from pd_core.cli.doctor import local
from pd_core.cli.doctor.local import Finding, Mark, examine
from pd_core.core.errors import BadParams, PdError
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import OwnImages, dataset_spec, own_spec

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port; nothing listens there
GIB = 2**30


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without what the environment says."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("PD_", "AWS_", "PREFECT_API"))]:
        monkeypatch.delenv(name)
    return tmp_path


def only(findings: Finding | Iterable[Finding]) -> Finding:
    (finding,) = [findings] if isinstance(findings, Finding) else findings
    return finding


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def dvc(folder: Path, config: str = "", secrets: str = "") -> None:
    """Make a folder a DVC local."""
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(f"[core]\n    no_scm = True\n{config}")
    (folder / ".dvc" / "config.local").write_text(secrets)


# The frame of all checks


def test_a_check_that_never_ends_is_given_up() -> None:
    def check() -> Iterator[Finding]:
        time.sleep(30)
        yield Finding("slow", Mark.OK, "at last")

    begun = time.monotonic()

    finding = only(examine("slow", check, seconds=0.2))

    assert time.monotonic() - begun < 5
    assert (finding.subject, finding.mark) == ("slow", Mark.WRONG)
    assert "no answer within 0.2 seconds" in finding.found


def test_an_error_is_what_was_found_and_the_remedy() -> None:
    def check() -> Iterator[Finding]:
        raise PdError("it is gone; look for it")
        yield

    assert only(examine("thing", check)) == Finding(
        "thing", Mark.WRONG, "it is gone", "look for it"
    )


def test_a_check_with_a_bug_does_not_stop_the_others() -> None:
    finding = only(examine("thing", lambda: [Finding("", Mark.OK, str(1 / 0))]))

    assert (finding.mark, finding.found) == (
        Mark.WRONG,
        "the check failed, ZeroDivisionError: division by zero",
    )


def test_findings_hold_no_secrets() -> None:
    finding = Finding("x", Mark.OK, "at http://me:hidden-word@host/", "http://me:hidden-word@host")

    assert "hidden" not in str(examine("x", lambda: [finding]))


# The machine


def test_the_installed_versions_are_the_pinned_ones() -> None:
    finding = only(local.packages(ROOT / "constraints.txt"))

    assert finding.mark is Mark.OK
    assert "fastapi 0.139.0" in finding.found
    assert finding.found.endswith("as pinned")


def test_another_version_than_the_pinned_one_is_a_warning() -> None:
    Path("constraints.txt").write_text("torch==1.0\nmlflow==0.1\nleft-pad==1\n")

    finding = only(local.packages(Path("constraints.txt")))

    assert finding.mark is Mark.WARNING
    assert "pinned is 1.0, mlflow is" in finding.found
    assert "pip install -c constraints.txt" in finding.remedy


def test_a_version_that_the_package_excludes_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_requirements", lambda: ["fastapi==0.1", "Open_CLIP.torch==3.3.0"])

    finding = only(local.packages(Path("none")))

    assert (finding.mark, finding.found) == (
        Mark.WRONG,
        "fastapi is 0.139.0, 0.1 is required",
    )


def python_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Path:
    """Have a shell find a program as `python3`, and nothing else."""
    folder.mkdir()
    (folder / "python3").symlink_to(program)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "python3"


def test_the_python_that_dvc_starts_is_the_one_of_the_shell(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert only(local.python_of_stages()).mark is Mark.OK

    bare = Path(sys.executable).resolve()  # outside the virtual environment it has no packages
    started = python_on_the_path(place / "bare", monkeypatch, str(bare))
    lacking = only(local.python_of_stages())
    assert lacking.mark is Mark.WARNING
    assert lacking.found.startswith(f"`dvc repro` fails: '{started}' lacks ")
    assert "torch" in lacking.found
    assert lacking.remedy.startswith("use `promptkd repro`, or ")

    python_on_the_path(place / "broken", monkeypatch, shutil.which("false", path="/usr/bin") or "")
    assert only(local.python_of_stages()).found == "`dvc repro` fails: it does not start"
    monkeypatch.setenv("PATH", str(place))
    assert only(local.python_of_stages()).found.startswith("no `python3` on the PATH")


def test_a_folder_that_git_does_not_track_is_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "as a ZIP download is none" in only(local.repository()).found
    git("init", "-q")
    Path("params.yaml").touch()
    assert only(local.repository()).mark is Mark.WRONG
    git("add", "params.yaml")
    git("commit", "-q", "-m", "m")
    assert only(local.repository()).found.startswith("commit ")
    monkeypatch.setenv("PATH", str(place))
    assert only(local.repository()).remedy == "install it"


def test_the_cpu_is_there_and_a_gpu_that_is_not_is_wrong() -> None:
    assert "cores" in only(local.device("cpu")).found
    finding = only(local.device("cuda:97"))
    assert finding.mark is Mark.WRONG
    assert "cuda:97: not there" in finding.found
    assert "PD_DEVICE" in finding.remedy


@pytest.mark.parametrize(
    ("free", "mark"),
    [(6 * GIB, Mark.OK), (5 * GIB - 1, Mark.WARNING), (GIB - 1, Mark.WRONG)],
)
def test_little_room_is_a_warning_and_next_to_none_is_wrong(free: int, mark: Mark) -> None:
    finding = local.space_finding("here", free)

    assert finding.mark is mark
    assert ("make room" in finding.remedy) == (mark is not Mark.OK)


def test_folders_of_one_disk_are_one_line_though_they_are_not_there_yet(place: Path) -> None:
    finding = only(local.space({"stages": place / "data" / "x", "cache": place}))

    assert f"free for stages, cache at '{place}'" in finding.found


# What is the user's


def test_a_misspelt_variable_is_said_with_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_DEVISE", "cuda")
    Path(".env").write_text("PD_MIRRO=x\nPD_DEVICE=cpu\n")
    Path(".env").chmod(0o600)

    findings = list(local.settings())

    assert {finding.found: finding.remedy for finding in findings} == {
        "PD_DEVISE is no setting": "write PD_DEVICE, or remove it",
        "PD_MIRRO is no setting": "write PD_MIRROR, or remove it",
        f"PD_DEVICE of '{Path('.env').absolute()}'": "",
    }


def test_a_data_folder_that_is_not_there_is_wrong_and_the_file_that_names_it_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("PD_DATA_ROOT=pictures\n")
    Path(".env").chmod(0o600)

    wrong, _ = local.settings()

    assert (wrong.mark, wrong.remedy) == (Mark.WRONG, "correct it, or make the folder")
    assert wrong.found == f"PD_DATA_ROOT, of '{place / '.env'}': no folder 'pictures'"
    monkeypatch.setenv("PD_DATA_ROOT", str(place))
    assert only(local.settings()).found == "PD_DATA_ROOT of the environment"


def test_a_file_of_secrets_that_git_would_take_or_others_may_read_is_said() -> None:
    git("init", "-q")
    Path(".env").write_text("PD_DEVICE=cpu\n")
    Path(".env").chmod(0o644)

    ignored, readable, _ = local.settings()

    assert (ignored.mark, ignored.found) == (Mark.WRONG, "git does not ignore '.env'")
    assert (readable.mark, readable.remedy) == (Mark.WARNING, "run `chmod 600 .env`")
    Path(".gitignore").write_text(".env\n")
    Path(".env").chmod(0o600)
    assert [finding.mark for finding in local.settings()] == [Mark.OK]


def test_a_data_set_that_is_not_there_is_wrong_and_embedded_ones_are_one_line(place: Path) -> None:
    for name in ("embedded_greek", "embedded_latin"):
        target = fingerprint.path_of(name, place)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(fingerprint.path_of(name, ROOT), target)
    specs = [dataset_spec(name) for name in ("embedded_greek", "dtd", "embedded_latin")]

    dtd, embedded = local.data(specs, place / "raw", place)

    assert (dtd.subject, dtd.mark, dtd.found) == (
        "data dtd",
        Mark.WRONG,
        f"absent: '{place / 'raw' / 'dtd'}'",
    )
    assert dtd.remedy == "run `promptkd data fetch dtd`, or correct PD_DATA_ROOT"
    assert (embedded.mark, embedded.found[:20]) == (Mark.OK, "2 embedded data sets")


def test_pictures_need_a_fingerprint_that_can_be_read_and_is_committed(place: Path) -> None:
    git("init", "-q")
    pictures = place / "raw" / "mine" / "labelled" / "red"
    pictures.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(pictures / "1.png")
    mine = own_spec("mine", OwnImages(labelled="mine/labelled"))
    path = fingerprint.path_of("mine", place)

    def look() -> Finding:
        return only(local.data([mine], place / "raw", place))

    assert look().mark is Mark.WRONG
    assert "run `promptkd data fingerprint mine` and commit" in look().remedy
    path.parent.mkdir()
    path.write_text("{}")
    assert (look().mark, look().remedy) == (Mark.WRONG, "run `promptkd data fingerprint mine`")
    shutil.copy(fingerprint.path_of("embedded_greek", ROOT), path)
    assert (look().mark, look().found) == (Mark.WARNING, "its fingerprint is not committed")
    git("add", str(path))
    git("commit", "-q", "-m", "m")
    assert look().mark is Mark.OK


def test_weights_that_are_missing_empty_or_damaged_are_wrong(place: Path) -> None:
    (place / "empty.pt").touch()
    (place / "good.safetensors").write_bytes(b"weights")
    findings = list(
        local.weights([place / "ViT-B-16.pt", place / "empty.pt", place / "good.safetensors"])
    )
    assert [(one.mark, one.remedy) for one in findings[:2]] == [
        (Mark.WRONG, "run `promptkd weights fetch ViT-B-16.pt`"),
        (Mark.WRONG, "copy it there, or correct the path"),
    ]
    assert (findings[2].mark, findings[2].found) == (Mark.OK, "'good.safetensors' (7 bytes)")

    (place / "SHA256SUMS").write_text(f"{'0' * 64}  good.safetensors\n")
    damaged = only(examine("weights", lambda: local.weights([place / "good.safetensors"])))
    assert damaged.mark is Mark.WRONG
    assert "does not match" in damaged.found


# All of it


def doctor(*arguments: str) -> Result:
    app = Typer()
    app.command()(command.doctor)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_working_profile_is_status_0_and_a_broken_one_status_1_in_text_and_json(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, place)
    for folder in ("fingerprints", "pd_core/models/weights"):
        shutil.copytree(ROOT / folder, place / folder)
    dvc(place)
    git("init", "-q")
    git("add", "params.yaml", "fingerprints")
    git("commit", "-q", "-m", "m")

    good = doctor()
    monkeypatch.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
    bad = doctor("--json")

    assert good.exit_code == 0, good.stdout
    lines = good.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert any(line.startswith("ok      data: 11 embedded data sets") for line in lines)
    assert bad.exit_code == 1
    rows = json.loads(bad.stdout)
    assert len(rows) == len(lines)
    (wrong,) = [row for row in rows if row["mark"] == "wrong"]
    assert wrong["subject"] == "Prefect"
    assert "prefect server start" in wrong["remedy"]


def test_bad_settings_are_the_usual_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", place)
    monkeypatch.setenv("PD_DEVICE", "gpu")

    with pytest.raises(BadParams, match="PD_DEVICE"):
        doctor()
