"""An agent and all that it started are killed in the middle of each stage, and started again."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agents import Server, agent, clone, environment, kill, serving
from comparison import STAGES, Undisturbed, differences, files, hashes
from faults import SHORT
from killed_runs import REPRO, copy_repository

NAME = "embedded_greek"
GPU = ("--gpu", "0")
TRAININGS = ("teacher", "student")


class Log:
    """Output of an agent and its runs since its last start."""

    def __init__(self, folder: Path) -> None:
        self._file = folder.parent / f"{folder.name}-agent{''.join(GPU)}.log"
        self._start = 0

    def begin(self) -> None:
        self._start = self._file.stat().st_size if self._file.exists() else 0

    @property
    def text(self) -> str:
        with self._file.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")

    @property
    def stages(self) -> list[str]:
        """The stages that DVC has started."""
        return re.findall(rf"Running stage '(\w+)@{NAME}':", self.text)

    def counts(self, stage: str) -> list[int]:
        """Return the steps of a stage that were reported as done, in order."""
        title = f"{stage.replace('_', ' ')} {NAME}"
        return [int(count) for count in re.findall(rf"{title}: (\d+)/\d+ ", self.text)]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(1500)
def test_a_run_that_is_killed_in_every_stage_ends_in_the_bytes_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    copy_repository(tmp_path / "template", SHORT)
    killed, undisturbed = (
        clone(tmp_path / "template", tmp_path / name) for name in ("killed", "undisturbed")
    )
    with ThreadPoolExecutor(1) as beside, serving(tmp_path, killed) as server:
        plain = beside.submit(_run_undisturbed, undisturbed)
        seconds = _run_and_kill(killed, server)
        assert differences(killed, NAME, plain.result()) == []
    assert (killed / "dvc.lock").read_bytes() == (undisturbed / "dvc.lock").read_bytes()
    assert len(seconds) == len(STAGES)
    assert max(seconds) < 60, seconds


def _run_and_kill(folder: Path, server: Server) -> list[float]:
    """Kill a flow run in each stage; return for how many seconds each kill kept its slot taken."""
    run = server.run("distill-dataset/gpu", "killed", dataset=NAME)
    log, seconds = Log(folder), list[float]()
    before, counted, killed = list[str](), 0, time.monotonic()  # of the last kill
    for stage in STAGES:
        log.begin()
        with agent(folder, server.api, *GPU) as process:
            seconds.append(_seconds_until_free(server, killed))
            while not _is_in_the_middle(stage, folder, log):
                assert process.poll() is None, log.text
                time.sleep(0.002)
            kill(process)
            killed = time.monotonic()
        assert server.state(run)["type"] == "RUNNING"
        assert log.stages == [*before, stage]
        if before and before[0] in TRAININGS:
            assert "continues from checkpoint" in log.text
            assert log.counts(before[0])[0] > counted
        before, counted = [stage], log.counts(stage)[-1]
    log.begin()
    with agent(folder, server.api, *GPU):
        seconds.append(_seconds_until_free(server, killed))
        assert server.ended(run)["type"] == "COMPLETED"
    assert log.stages == before
    return seconds[1:]


def _is_in_the_middle(stage: str, folder: Path, log: Log) -> bool:
    """Return True if a stage reports steps and, as a training, is in its second epoch."""
    kept = (folder / "data" / "checkpoints" / stage / NAME).glob("checkpoint-000002-*.safetensors")
    return bool(log.counts(stage)) and (stage not in TRAININGS or any(kept))


def _seconds_until_free(server: Server, killed: float) -> float:
    """Check that a restarted agent's slot is free; return the seconds since the kill."""
    assert set(server.limits().values()) == {0}
    return time.monotonic() - killed


def _run_undisturbed(folder: Path) -> Undisturbed:
    """Run the stages by hand."""
    begin = time.monotonic()
    done = subprocess.run(
        [*REPRO, f"evaluate@{NAME}"],
        cwd=folder, env=environment(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Undisturbed(time.monotonic() - begin, {}, hashes(folder, NAME), tuple(files(folder)))
