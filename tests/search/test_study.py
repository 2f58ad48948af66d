"""Trials of a search: seeded, resumed without loss or repetition, and pruned."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pd_core.core.errors import PdError
from pd_core.pipeline.stages.space import Dimension
from pd_core.search.study import Repeat, Study, study_name

PATHS = (str(Path(__file__).parents[2]), str(Path(__file__).parent))
SPACE = {
    "lr": Dimension(low=0.001, high=0.1, log=True),
    "epochs": Dimension(low=2, high=9),
    "crop": Dimension(choices=([0.5, 1.0], [0.8, 1.0])),
}
CURRENT = {"lr": 0.5, "epochs": 3, "crop": [0.1, 1.0]}  # two of them outside of the space


def number(values: dict[str, Any]) -> float:
    """Return the objective of a candidate."""
    return 100.0 - abs(float(values["lr"]) - 0.02) * 100 - abs(int(values["epochs"]) - 7)


def run(study: Study, limit: int) -> None:
    while (begun := study.ask(SPACE, CURRENT, limit)) is not None:
        trial, values = begun
        value = number(values)
        going = all(study.is_promising(trial, rung, value - 5 + rung) for rung in (0, 1))
        study.tell(trial, value if going else None)


def candidates(study: Study) -> list[tuple[Any, ...]]:
    return [(each.number, each.values, each.value) for each in study.trials()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A search of eleven trials."""
    study = Study(tmp_path_factory.mktemp("done") / "trials.db", "student-1", seed=1)
    run(study, 11)
    return study


def test_the_first_trial_has_the_current_values_exactly(done: Study) -> None:
    assert done.trials()[0].values == CURRENT


def test_the_sampler_learns_of_the_current_values_as_the_nearest_in_the_space(done: Study) -> None:
    params = done._study.trials[0].params

    assert (params["lr"], params["epochs"]) == (0.1, 3)


def test_values_are_within_the_space_and_have_three_digits(done: Study) -> None:
    for trial in done.trials()[1:]:
        lr, epochs, crop = (trial.values[key] for key in SPACE)
        assert 0.001 <= lr <= 0.1
        assert float(f"{lr:.3g}") == lr
        assert type(epochs) is int
        assert 2 <= epochs <= 9
        assert crop in ([0.5, 1.0], [0.8, 1.0])


def test_the_same_seed_gives_the_same_trials_also_in_two_runs(done: Study, tmp_path: Path) -> None:
    run(Study(tmp_path / "trials.db", "student-1", seed=1), 7)
    again = Study(tmp_path / "trials.db", "student-1", seed=1)
    run(again, 11)

    assert candidates(again) == candidates(done)


def test_no_two_trials_are_the_same(done: Study) -> None:
    assert len({json.dumps(trial.values) for trial in done.trials()}) == 11


def test_another_seed_gives_other_trials(done: Study, tmp_path: Path) -> None:
    other = Study(tmp_path / "trials.db", "student-1", seed=2)
    run(other, 4)

    assert candidates(other)[1:] != candidates(done)[1:4]


def test_about_the_best_quarter_goes_on_at_a_rung(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.db", "student-1", seed=1)
    going = []
    for value in (50.0, 60.0, 40.0, 55.0, 57.0, 70.0, 30.0):
        begun = study.ask(SPACE, CURRENT, 20)
        assert begun is not None
        going.append(study.is_promising(begun[0], 0, value))
        study.tell(begun[0], None)

    assert going == [True, True, False, False, True, True, False]


def test_an_interrupted_trial_does_not_count(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.db", "student-1", seed=1)
    run(study, 2)
    dropped = study.ask(SPACE, CURRENT, 3)
    assert dropped is not None
    study.is_promising(dropped[0], 0, 99.0)  # would prune all that come
    study.drop(dropped[0])
    again = study.ask(SPACE, CURRENT, 3)

    assert again is not None
    assert again[1] == dropped[1]
    assert study.is_promising(again[0], 0, 98.0)


def test_trials_keep_their_numbers_if_an_earlier_one_is_dropped(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.db", "student-1", seed=1)
    dropped, other = (study.ask(SPACE, CURRENT, 2) for _ in range(2))
    assert dropped is not None
    assert other is not None
    study.tell(other[0], 70.0)
    before = candidates(study)
    study.drop(dropped[0])
    again = study.ask(SPACE, CURRENT, 2)
    assert again is not None
    study.tell(again[0], 60.0)

    assert before == [(2, other[1], 70.0)]
    assert candidates(study) == [(1, CURRENT, 60.0), *before]
    assert study.ask(SPACE, CURRENT, 2) is None


def test_results_of_other_seeds_are_kept(done: Study) -> None:
    done.keep(3, 12, Repeat(71.5, 20.0))

    assert done.repeated(3, 12) == Repeat(71.5, 20.0)
    assert done.repeated(3, 13) is None


def test_the_name_changes_with_everything_that_it_is_made_of() -> None:
    key = {"seed": 1, "data": {"prepare": "1a"}}
    names = {study_name("student", key), study_name("student", {**key, "seed": 2})}

    assert len(names | {study_name("teacher", key)}) == 3
    assert study_name("student", dict(reversed(key.items()))) in names


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_text("something else" * 100)
    with pytest.raises(PdError, match="cannot use '.*trials.db' .*file is not a database"):
        Study(tmp_path / "trials.db", "student-1", seed=1)


KILLED = """
import json, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_study import CURRENT, SPACE, number
from pd_core.search.study import Study

study = Study(Path(sys.argv[1]), "student-1", seed=1)
while (begun := study.ask(SPACE, CURRENT, 12)) is not None:
    trial, values = begun
    print(json.dumps(values), flush=True)
    going = True
    for rung in (0, 1):
        time.sleep(float(sys.argv[2]))
        going = going and study.is_promising(trial, rung, number(values) - 5 + rung)
    study.tell(trial, number(values) if going else None)
"""


def start(database: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, str(database), str(seconds), *PATHS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.ci
def test_after_kills_no_trial_is_lost_and_none_comes_twice(tmp_path: Path) -> None:
    undisturbed = Study(tmp_path / "undisturbed.db", "student-1", seed=1)
    process = start(tmp_path / "undisturbed.db", 0)
    process.communicate(timeout=60)

    begun = []
    for after in (2, 3):  # in the second and in the fourth trial
        process = start(tmp_path / "killed.db", 0.2)
        assert process.stdout is not None
        begun += [json.loads(process.stdout.readline()) for _ in range(after)]
        time.sleep(0.25)  # behind its first rung
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    process = start(tmp_path / "killed.db", 0)
    output, _ = process.communicate(timeout=60)
    begun += [json.loads(line) for line in output.splitlines()]

    killed = Study(tmp_path / "killed.db", "student-1", seed=1)
    assert candidates(killed) == candidates(undisturbed)
    assert len(candidates(killed)) == 12
    assert len(begun) == 14  # two of which were killed and begun again
    assert begun[1] == begun[2]
    assert begun[4] == begun[5]


FULL = """
import sys
from pathlib import Path
disk = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
from test_study import CURRENT, SPACE, candidates, run
from pd_core.core.errors import NoSpace
from pd_core.search.study import Study

study = Study(disk / "trials.db", "student-1", seed=1)
run(study, 3)
before = candidates(study)
trial, _ = study.ask(SPACE, CURRENT, 4)
with (disk / "filler").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(1 << 12)):
            pass
    except OSError:
        pass
try:
    study.tell(trial, 50.0, curve=[{"loss": 1.0}] * 10_000)
except NoSpace as error:
    print(error)
assert candidates(study) == before
try:
    Study(disk / "trials.db", "student-1", seed=1)
except NoSpace as error:
    print(error)
(disk / "filler").unlink()
study.drop(trial)
again = Study(disk / "trials.db", "student-1", seed=1)
assert candidates(again) == before
run(again, 4)
assert len(candidates(again)) == 4
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_has_ended_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=12m tmpfs {disk} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", FULL, str(disk)]
    done = subprocess.run([*command, *PATHS], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    in_the_middle, at_the_start = done.stdout.splitlines()
    assert in_the_middle.startswith(f"cannot write '{disk}/trials.db': the disk is full; make room")
    assert at_the_start.startswith(f"the search needs 8.0 MiB in '{disk}', where ")
