"""A disk that fills up while a stage runs: one line, nothing lost, and it goes on when it can."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs in a name space where a small file system is mounted at its second argument.
RUN = """
import hashlib, os, shutil, sqlite3, subprocess, sys, time
from pathlib import Path

ROOT, DISK, DATABASE = (Path(argument) for argument in sys.argv[1:])
NAME = "embedded_digits"
project = DISK / "project"
project.mkdir()
for name in ("pd_core", "fingerprints"):
    (project / name).symlink_to(ROOT / name)
shutil.copy(DATABASE, project / "mlflow.db")
text = (ROOT / "params.yaml").read_text()
for old, new in (
    ("  epochs: 10 ", "  epochs: 3 "),
    ("  gpa_mean: 8 ", "  gpa_mean: 2 "),
    ("  checkpoint_minutes: 5 ", "  checkpoint_minutes: 0.002 "),
):
    assert old in text
    text = text.replace(old, new)
(project / "params.yaml").write_text(text)
prepared, out = project / "data/prepare" / NAME, project / "data/teacher" / NAME
checkpoints = project / "data/checkpoints/teacher" / NAME


def start(stage):
    return subprocess.Popen(
        [sys.executable, "-m", "pd_core", stage, NAME], cwd=project, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


def end(process, status):
    output = process.communicate(timeout=100)[0]
    assert process.returncode == status, output
    assert "Traceback" not in output, output
    return output


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fill():
    with (DISK / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


def runs():
    with sqlite3.connect(project / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute("SELECT count(*) FROM runs").fetchone()[0]


end(start("prepare"), 0)
end(start("teacher"), 0)
undisturbed, lists, recorded = content(out), content(prepared), runs()

print("full before the start")
fill()
output = end(start("teacher"), 2)
assert "error: the stage teacher needs 32.0 MiB in" in output, output
assert (content(out), content(prepared), runs()) == (undisturbed, lists, recorded)
(DISK / "filler").unlink()

print("full in the middle")
shutil.rmtree(out)
process = start("teacher")
while len(list(checkpoints.glob("*.safetensors"))) < 2:
    assert process.poll() is None
    time.sleep(0.001)
fill()
output = end(process, 2)
line = next(line for line in output.splitlines() if line.startswith("error: "))
assert "No space left on device: " in line, output
assert content(prepared) == lists and not out.exists()
assert runs() >= recorded
kept = list(checkpoints.iterdir())
assert kept and all(path.suffix == ".safetensors" for path in kept), kept
(DISK / "filler").unlink()

print("room again")
assert "continues from checkpoint" in end(start("teacher"), 0)
assert content(out) == undisturbed
assert not checkpoints.exists()
assert [path.name for path in project.rglob("*.partial")] == []
print("nothing was lost")
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_on_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, empty_database: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=96m tmpfs {disk} && exec "$@"'

    done = subprocess.run(
        [
            "unshare", "-rm", "sh", "-c", mount, "sh",
            sys.executable, "-c", RUN, str(ROOT), str(disk), str(empty_database),
        ],
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing was lost\n")
