"""Fault injection: the stages of a data set are killed at random times and started again.

A run passes if the same command, started again, ends with the bytes of an undisturbed run. Results
are appended to a file; those already there are not run again.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from comparison import STAGES, Undisturbed
from killed_runs import ROOT, BrokenSetup, Moment, copy_repository, killed_run, stop
from killed_runs import undisturbed_run as run_undisturbed

REPEATED = 5  # every fifth run is killed more than once

Record = dict[str, Any]
Changes = Mapping[str, Mapping[str, Any]]

# Fewer epochs than committed, in the undisturbed run as in the killed ones; checkpoints close
# together, so that kills fall between two of the same epoch.
SHORT: Changes = {
    "run": {"checkpoint_minutes": 0.02},
    "teacher": {"epochs": 3, "gpa_mean": 2},
    "student": {"epochs": 2},
}
FULL: Changes = {"run": {"checkpoint_minutes": 0.02}}


class Experiment:
    """Killed runs of one data set, some at a time, and the file of their results."""

    def __init__(
        self, results: Path, name: str, *, work: Path, jobs: int, changes: Changes
    ) -> None:
        """Copy the repository into the folder `work`, with changed parameters."""
        self._work = work
        self._results = results
        self._name = name
        self._jobs = jobs
        self._template = work / "template"
        tree = copy_repository(self._template, changes)
        self._key = {"tree": tree, "dataset": name}

    def undisturbed(self) -> Undisturbed:
        """Return the slowest of several undisturbed runs, as many at a time as will be killed.

        Raises:
            BrokenSetup: a run failed, or the runs differ from each other.
        """
        for record in self._known("undisturbed"):
            return Undisturbed(**record["undisturbed"])
        folders = [self._work / f"undisturbed-{number}" for number in range(self._jobs)]
        with ThreadPoolExecutor(self._jobs) as pool:
            runs = list(
                pool.map(lambda to: run_undisturbed(self._template, to, self._name), folders)
            )
        if any(run.hashes != runs[0].hashes for run in runs):
            raise BrokenSetup("undisturbed runs differ from each other; nothing can be compared")
        slowest = max(runs, key=lambda run: run.seconds)
        self._keep({"undisturbed": asdict(slowest)})
        return slowest

    def killed(
        self, plain: Undisturbed, *, runs: int, seed: int, moment: Moment, times: int
    ) -> Iterator[Record]:
        """Kill runs and start them again; yield recorded results first, then the new ones.

        Every fifth run is killed several times.
        """
        settings = {"seed": seed, "at": moment.value, "repeat": times}
        recorded = {
            record["run"]: record
            for record in self._known("run")
            if record["run"] < runs and settings.items() <= record.items()
        }
        yield from recorded.values()
        pool = ThreadPoolExecutor(self._jobs)
        try:
            futures = {
                pool.submit(self._kill, plain, number, seed, moment, times): number
                for number in range(runs)
                if number not in recorded
            }
            for future in as_completed(futures):
                yield self._keep({**settings, "run": futures[future], **future.result()})
        finally:
            pool.shutdown(cancel_futures=True)

    def _kill(
        self, plain: Undisturbed, number: int, seed: int, moment: Moment, times: int
    ) -> Record:
        repeated = number % REPEATED == REPEATED - 1
        result = killed_run(
            self._template, self._work / f"run-{number}", self._name, plain,
            generator=random.Random(f"{seed} {moment} {number}"),
            moment=moment, times=times if repeated else 1,
        )  # fmt: skip
        return asdict(result)

    def _known(self, kind: str) -> Iterator[Record]:
        if self._results.exists():
            for line in self._results.read_text().splitlines():
                record = json.loads(line)
                if kind in record and self._key.items() <= record.items():
                    yield record

    def _keep(self, record: Record) -> Record:
        self._results.parent.mkdir(parents=True, exist_ok=True)
        with self._results.open("a") as file:
            file.write(json.dumps({**self._key, **record}) + "\n")
        return record


def line(record: Record) -> str:
    """Summarise a run in a line."""
    where = ", ".join(
        f"{kill['seconds']:.1f} s in {kill['stage'] or 'the start of DVC'}"
        for kill in record["kills"]
    )
    resumed = "; ".join(filter(None, record["resumed"])) or "no checkpoint used"
    verdict = "; ".join(record["failures"]) or "same bytes"
    rest = f" (DVC left {', '.join(record['leftovers'])})" if record["leftovers"] else ""
    return (
        f"run {record['run']}: killed at {where}; {resumed}; "
        f"{record['seconds']:.1f} s more: {verdict}{rest}"
    )


def table(records: list[Record]) -> str:
    """Count by stage: kills, those followed by a resumed training, those of equal runs."""
    counts = {stage: [0, 0, 0] for stage in ("", *STAGES)}
    for record in records:
        for kill, resumed in zip(record["kills"], record["resumed"], strict=True):
            row = counts[kill["stage"]]
            row[0] += 1
            row[1] += bool(resumed)
            row[2] += not record["failures"]
    rows = [(stage or "start of DVC", row) for stage, row in counts.items()]
    rows.append(("all", [sum(column) for column in zip(*counts.values(), strict=True)]))
    heading = f"{'killed in':14}{'kills':>8}{'from a checkpoint':>20}{'same bytes':>13}"
    lines = [f"{name:14}{row[0]:8}{row[1]:20}{row[2]:13}" for name, row in rows]
    return "\n".join([heading, *lines])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=60, help="number of killed runs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random times")
    parser.add_argument("--dataset", default="embedded_digits")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs")
    parser.add_argument(
        "--at", type=Moment, choices=list(Moment), default=Moment.TIME, help="moment of the kills"
    )
    parser.add_argument("--repeat", type=int, default=3, help="number of kills in every fifth run")
    parser.add_argument("--full", action="store_true", help="run all committed epochs")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "faults.jsonl")
    return parser.parse_args()


def main() -> int:
    """Run the experiment; status 1 if a run does not end as it should."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    changes = FULL if given.full else SHORT
    work = Path(tempfile.mkdtemp(prefix="promptkd-faults-"))
    experiment = Experiment(
        given.results, given.dataset, work=work, jobs=given.jobs, changes=changes
    )
    plain = experiment.undisturbed()
    _print(f"undisturbed: {plain.seconds:.1f} s")
    records = []
    for record in experiment.killed(
        plain, runs=given.kills, seed=given.seed, moment=given.at, times=given.repeat
    ):
        records.append(record)
        _print(line(record))
    _print(table(records))
    failed = [record for record in records if record["failures"]]
    _print(
        f"{len(records) - len(failed)} of {len(records)} runs end in the undisturbed run's bytes"
    )
    if failed:
        _print(f"what the others left is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the runs, which a signal of the terminal does not reach."""
    del number, frame
    stop()
    raise KeyboardInterrupt


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except BrokenSetup as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
