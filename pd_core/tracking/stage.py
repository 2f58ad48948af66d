"""A stage as one run: what is known before its work, during it, and after it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pd_core import provenance
from pd_core.errors import Interrupted
from pd_core.tracking.live import Recorder
from pd_core.tracking.record import DataInput, StageRun


@contextmanager
def stage_run(
    store: str | None,
    *,
    profile: str,
    dataset: str,
    stage: str,
    params: Mapping[str, object],
    deps: Iterable[Path],
    outs: Iterable[Path],
    seed: int,
    protocol: str,
    inputs: Iterable[DataInput] = (),
    experiment: str = "promptkd",
    project: Path = Path(),
) -> Iterator[StageRun]:
    """Record what happens in the block as one run named `stage@dataset`.

    The run is there from the start of the block, and its numbers arrive while it lasts. The
    dependencies are hashed before the block and the outputs after it, as DVC does, because
    `dvc.lock` does not have them while the stage runs. A block that raises is recorded as failed.
    Results outweigh their record: whatever the store does, it is at most a warning.

    Args:
        store: what `open_store` returned; None records nothing.
        profile: `quickstart` or `paper`; each has its own experiment.
        dataset: the data set; "" for a stage over all of them.
        stage: `prepare`, `teacher`, ...
        params: the stage's own parameters, may be nested.
        deps: files and folders that the stage reads, in `project`.
        outs: files and folders that it writes, in `project`.
        seed: its random seed.
        protocol: which classes are trained and tested on.
        inputs: the data sets among what it reads; those that are not there are left out.
        experiment: its name's first part; the profile is the second.
        project: folder that the paths are named from, and whose git commit is recorded.

    Yields:
        The run, to add metrics and files to; its `run_id` is None if the store does not answer.
    """
    run = StageRun()
    if store is None:
        yield run
        return
    run.set_tags({"profile": profile, "dataset": dataset, "stage": stage, "protocol": protocol})
    run.set_tags(
        {
            "seed": str(seed),
            "params_md5": provenance.params_hash(params),
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            **provenance.commit_tags(project),
            **provenance.hash_tags("dep", deps, project),
        }
    )
    recorder = Recorder(
        store, run, experiment=f"{experiment}-{profile}", params=params, inputs=inputs,
        project=project,
    )  # fmt: skip
    start = time.monotonic()
    status = "FAILED"
    try:
        recorder.open()
        start = time.monotonic()
        yield run
        run.set_tags(provenance.hash_tags("out", outs, project))
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    except Exception as error:
        run.set_tags({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        raise
    finally:
        seconds = time.monotonic() - start
        run.add({"seconds": seconds, "peak_memory_mb": provenance.peak_memory()})
        recorder.close(status)
