"""Search for better parameters as a Prefect flow: `python -m flows.tune DATA_SET`.

With agents (`flows.agent`) trials run side by side on their GPUs; they share the search's database
in the folder of the agents. Without, they run one after the other in this process. No server is
needed; if one is set (`PD_PREFECT_API_URL`), the run is recorded there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import artifacts, slots
from flows.assignment import agents, available, run_by_agents
from flows.commands import DataSet, check_name, check_server, command, profile_of
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.processes import PROMPTKD, run
from pd_core.pipeline.redaction import masked
from pd_core.pipeline.settings import load_settings

Stage = Literal["student", "teacher"]

_DEPLOYMENT = "search/trials"


@flow(name="tune")
def tune(
    dataset: DataSet, stage: Stage = "student", trials: int = 30, hours: float | None = None
) -> State[Any]:
    """Search for better parameters of a data set by all agents; propose the best ones.

    Args:
        dataset: its name; the stages before the searched one have run.
        stage: whose parameters are searched.
        trials: their number, with those of earlier runs.
        hours: begin no trial after so many.

    Returns:
        Completed, with the best values as an artifact; or failed with the reason.
    """
    given = {"dataset": dataset, "stage": stage, "trials": trials}
    try:
        with slots.recorded():
            if not available():
                state: State[Any] = search(**given, hours=hours, return_state=True)
                return state
            check_folder()
            reason = _search_by_agents({**given, "hours": hours})
    except PdError as error:
        return Failed(message=str(error))
    if reason:
        return Failed(message=reason)
    return _completed(dataset, stage)


@flow(name="search")
def search(
    dataset: DataSet,
    stage: Stage = "student",
    trials: int = 30,
    hours: float | None = None,
    trials_only: bool = False,
) -> State[Any]:
    """Run trials of a search on the GPU of the agent that runs this, until there are enough.

    Args:
        dataset: its name.
        stage: whose parameters are searched.
        trials: their number, with those of other runs of the same search.
        hours: begin no trial after so many.
        trials_only: end after the trials; else choose the best candidate, and publish it.

    Returns:
        Completed; or failed with the reason.
    """
    options = ["--stage", stage, "--trials", str(trials)]
    options += [] if hours is None else ["--hours", str(hours)]
    options += ["--worker"] if trials_only else []
    try:
        with _slot_held() as variables:
            result = _tune([dataset, *options], profile_of(dataset), variables)
    except PdError as error:
        return Failed(message=str(error))
    if trials_only:
        return Completed(message=f"no trial of {stage}@{dataset} is left for this agent")
    create_markdown_artifact(
        key=artifacts.key_of("tune", dataset, stage),
        markdown=f"```\n{result}\n```\n",
        description=f"Best parameters of {stage}@{dataset}.",
    )
    artifacts.publish_mlflow(profile_of(dataset), dataset)
    return _completed(dataset, stage)


def _completed(dataset: str, stage: str) -> State[Any]:
    return Completed(message=f"the search of {stage}@{dataset} has ended")


def _search_by_agents(parameters: Mapping[str, Any]) -> str:
    """Run trials on all agents, then choose the best on one; return the reason of a failure."""
    dataset = parameters["dataset"]
    trials = {
        f"{dataset}, trials {number}": {**parameters, "trials_only": True}
        for number, _ in enumerate(agents() or [""], start=1)
    }
    best = {f"{dataset}, best candidates": {**parameters, "hours": 0.0}}
    for jobs in (trials, best):
        for outcome in run_by_agents(_DEPLOYMENT, jobs):
            if outcome.reason:
                return f"{outcome.name}: {outcome.reason}"
    return ""


def check_folder() -> None:
    """Refuse agents that share no folder.

    Raises:
        BadParams: each agent works in a clone of its own.
    """
    if load_settings().dvc_remote is not None:
        raise BadParams(
            "with PD_DVC_REMOTE each agent works in a folder of its own, and trials share the"
            " database of one folder; unset it and start the agents in one folder, or run"
            " `promptkd tune --jobs` there"
        )


@contextmanager
def _slot_held() -> Iterator[dict[str, str]]:
    """Hold the agent's slot, if this is run by one; yields the variables of its command."""
    slot = slots.own()
    with slots.recorded() as record:
        if slot is None:
            yield {}
            return
        with slots.held(slot) as leases:
            record(leases)
            yield {"CUDA_VISIBLE_DEVICES": slot.visible}


def _tune(arguments: Sequence[str], folder: Path, variables: Mapping[str, str]) -> str:
    """Run `promptkd tune`, log its notes, and return what it prints.

    Raises:
        PdError: it fails.
    """
    log = get_run_logger()
    with TemporaryFile("w+", encoding="utf-8") as result:
        ended = run(
            [*PROMPTKD, "tune", *arguments],
            folder,
            lambda line: log.info("%s", line),
            extra=variables,
            result=result,
        )
        result.seek(0)
        text = masked(result.read()).strip()
    if ended.status:
        raise PdError(ended.reason)
    return text


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.tune", description=__doc__)
    parser.add_argument("dataset", metavar="DATA_SET", help="data set in params.yaml")
    parser.add_argument(
        "--stage", choices=("student", "teacher"), default="student", help="default: %(default)s"
    )
    parser.add_argument("--trials", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--hours", type=float, help="begin no trial after so many hours")
    options = parser.parse_args(arguments)
    check_server(PREFECT_API_URL.value())
    check_name(options.dataset)  # bad input, before Prefect starts
    return tune(**vars(options), return_state=True)


if __name__ == "__main__":
    sys.exit(main())
