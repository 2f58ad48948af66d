"""A version through the gate: `python -m flows.promote DATA_SET[/VERSION]`.

The flow runs `promptkd registry promote`, keeps the decision as an artifact, and fails if the
version is refused. No server is needed; if one is set (`PD_PREFECT_API_URL`), run and artifact are
kept there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import artifacts
from flows.commands import DataSet, check_name, check_server, command, profile_of
from pd_core.core.errors import BadParams, PdError
from pd_core.pipeline.processes import PROMPTKD, run
from pd_core.pipeline.redaction import masked, without_login
from pd_core.pipeline.settings import load_settings

_DECIDED = (0, 2)  # statuses of the verb: yes, and no or what the user can put right

Decision = Mapping[str, Any]
"""What `promptkd registry promote --json` says."""


@flow(name="promote")
def promote(
    dataset: DataSet,
    version: int | None = None,
    accept_unknown: bool = False,
    dry_run: bool = False,
) -> State[Any]:
    """Make a version the champion, if it passes the gate.

    Args:
        dataset: whose student it is.
        version: its number; the newest by default.
        accept_unknown: even if its accuracy cannot be measured.
        dry_run: change nothing, only say what would be decided.

    Returns:
        Completed; or failed if the version is refused, or could not be examined. The artifact has
        all checks.
    """
    log = get_run_logger()
    chosen = {"--accept-unknown": accept_unknown, "--dry-run": dry_run}
    options = [option for option, wanted in chosen.items() if wanted]
    try:
        decision = decide(dataset, version, options, lambda line: log.info("%s", line))
        text = describe(decision, load_settings().mlflow_tracking_uri)
    except PdError as error:
        return Failed(message=str(error))
    create_markdown_artifact(
        key=artifacts.key_of("promotion", dataset),
        markdown=text,
        description=decision["conclusion"],
    )
    state = Completed if decision["accepted"] else Failed
    return state(message=decision["conclusion"])


def decide(
    dataset: str, version: int | None, options: Sequence[str], say: Callable[[str], None]
) -> Decision:
    """Put a version, or the newest, through the gate; `say` gets each line of its progress.

    Raises:
        PdError: nothing could be decided.
    """
    arguments = ("promote", _reference(dataset, version), "--json", *options)
    return dict(_registry(arguments, dataset, say))


def describe(decision: Decision, tracking_uri: str | None) -> str:
    """Write a decision down for people, as Markdown, with a link to MLflow's server, if any."""
    conclusion = decision["conclusion"]
    reasons = [f"- {reason}" for reason in decision["reasons"]]
    rows = [
        (check["name"], "yes" if check["passed"] else "no", *_numbers(check), check["finding"])
        for check in decision["checks"]
    ]
    head = ("check", "passed", "value", "limit", "finding")
    parts = [
        f"# {decision['name']}, version {decision['version']}",
        f"{conclusion[:1].upper()}{conclusion[1:]}.",
        *(["Nothing was changed: this was a dry run."] if decision["dry_run"] else []),
        *(["## Why not", "\n".join(reasons)] if reasons else []),
        *(["## Checks", artifacts.markdown(head, rows)] if rows else []),
        f"In MLflow: {_place(decision, tracking_uri)}",
    ]
    return "\n\n".join(parts) + "\n"


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument(
        "reference", metavar="DATA_SET[/VERSION]", help="the newest version by default"
    )
    parser.add_argument(
        "--accept-unknown", action="store_true", help="even if its accuracy cannot be measured"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, change nothing"
    )
    given = parser.parse_args(arguments)
    dataset, version = _parsed(given.reference)
    check_server(PREFECT_API_URL.value())
    check_name(dataset)  # bad input, before Prefect starts
    _registry(("show", _reference(dataset, version), "--json"), dataset, lambda _: None)
    return promote(dataset, version, given.accept_unknown, given.dry_run, return_state=True)


def _parsed(reference: str) -> tuple[str, int | None]:
    dataset, slash, version = reference.partition("/")
    if slash and not version.isdecimal():
        raise BadParams(f"'{reference}' names no version; give {dataset}/<number>, or {dataset}")
    return dataset, int(version) if slash else None


def _reference(dataset: str, version: int | None) -> str:
    return dataset if version is None else f"{dataset}/{version}"


def _registry(arguments: Sequence[str], dataset: str, say: Callable[[str], None]) -> Any:
    """Return what a verb of the registry answers as JSON, without secrets.

    Raises:
        PdError: it answers nothing.
    """
    with TemporaryFile("w+", encoding="utf-8") as result:
        command = [*PROMPTKD, "registry", *arguments]
        ended = run(command, profile_of(dataset), say, result=result)
        result.seek(0)
        answer = result.read()
    if ended.status not in _DECIDED or not answer.strip():
        raise PdError(ended.reason)
    return json.loads(masked(answer))


def _numbers(check: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number that decided, and what it was compared with."""
    if (measure := check["measure"]) is None:
        return "", ""
    value, limit = (f"{measure[key]:.4g} {measure['unit']}".strip() for key in ("value", "limit"))
    return value, f"{measure['wanted']} {limit}"


def _place(decision: Decision, tracking_uri: str | None) -> str:
    """Return where MLflow shows a version: a link to its server, or what its API calls it."""
    if not (tracking_uri or "").startswith("http"):
        return f"`{decision['uri']}`"
    server = without_login(tracking_uri or "").rstrip("/")
    page = f"{server}/#/models/{decision['name']}/versions/{decision['version']}"
    return f"[{decision['uri']}]({page})"


if __name__ == "__main__":
    sys.exit(main())
