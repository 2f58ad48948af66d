"""Killed runs: six of the real stages, and stages of a toy that must or must not pass."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from comparison import STAGES
from faults import SHORT, Experiment, line, table
from git_repository import commit, git
from killed_runs import KilledRun, Moment, killed_run, undisturbed_run

NAME = "embedded_digits"

# Stages of the toy: each writes under a temporary name for a second, in which it is killed.
PLAIN = "echo done > {out}"
GOOD = "touch data/.part; sleep 1; mv data/.part {out}"
# Two that depend on what the killed start left.
FORGETFUL = "echo x >> starts; touch data/.part; sleep 1; rm data/.part; cp starts {out}"
UNTIDY = "[ -e data/.part ] || { touch data/.part; sleep 1; rm data/.part; }; echo done > {out}"


def toy(folder: Path, command: str) -> Path:
    """Make a repository of five stages, of which `class_vectors` is the given command."""
    folder.mkdir()
    stages = {}
    for number, stage in enumerate(STAGES):
        out = f"data/{stage}/toy/out"
        run = (command if stage == "class_vectors" else PLAIN).replace("{out}", out)
        stages[stage] = {
            "foreach": ["toy"],
            "do": {
                "cmd": f"mkdir -p data/{stage}/toy; {run}",
                "deps": [f"data/{before}/toy/out" for before in STAGES[:number][-1:]],
                "outs": [out],
            },
        }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git(folder, "init", "--quiet")
    subprocess.run(["dvc", "init", "--quiet"], cwd=folder, check=True)
    commit(folder)
    return folder


class AtOnce(random.Random):
    """Draws the earliest time."""

    def uniform(self, a: float, b: float) -> float:
        del b
        return a


def killed_toy(tmp_path: Path, command: str) -> KilledRun:
    """Kill it in `class_vectors`, and start it again."""
    template = toy(tmp_path / "template", command)
    plain = undisturbed_run(template, tmp_path / "undisturbed", "toy")

    return killed_run(
        template, tmp_path / "killed", "toy", plain,
        generator=AtOnce(), moment=Moment.WRITE, times=1,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_six_runs_killed_at_random_times_end_in_the_bytes_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    experiment = Experiment(tmp_path / "results.jsonl", NAME, work=tmp_path, jobs=2, changes=SHORT)
    plain = experiment.undisturbed()
    records = list(experiment.killed(plain, runs=6, seed=1, moment=Moment.TIME, times=3))
    assert [line(record) for record in records if record["failures"]] == []
    assert len(records) == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "failures"),
    [
        (GOOD, ()),
        (FORGETFUL, ("not the same bytes: data/class_vectors/toy/out",)),
        (UNTIDY, ("left behind: data/.part", "temporary files left: data/.part")),
    ],
)
def test_a_stage_that_resumes_wrongly_or_leaves_files_behind_is_found(
    tmp_path: Path, command: str, failures: tuple[str, ...]
) -> None:
    result = killed_toy(tmp_path, command)

    assert result.kills[0].stage == "class_vectors"
    assert result.failures == failures


def test_the_table_counts_kills_by_stage() -> None:
    kills = [{"seconds": 1.0, "stage": "teacher"}, {"seconds": 2.0, "stage": "student"}]
    good = {"kills": kills, "resumed": ["continues", ""], "failures": []}
    bad = {"kills": kills[:1], "resumed": ["continues"], "failures": ["not the same bytes"]}
    rows = {row.split()[0]: row.split()[-3:] for row in table([good, bad]).splitlines()}
    assert rows["teacher"] == ["2", "2", "1"]
    assert rows["student"] == ["1", "0", "1"]
    assert rows["all"] == ["3", "2", "2"]
