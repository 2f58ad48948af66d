"""Flow that puts a version through the gate: `python -m flows.promote DATA_SET[/VERSION]`.

It runs `promptkd registry promote`, publishes the decision as an artifact, and fails if the version
is refused. No server is needed; if one is set (`PD_PREFECT_API_URL`), it holds run and artifact.
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

_DECIDED = (0, 2)  # exit statuses: accepted, and refused or an error of the user's

Decision = Mapping[str, Any]
"""JSON of `promptkd registry promote --json`."""


@flow(name="promote")
def promote(
    dataset: DataSet,
    version: int | None = None,
    accept_unknown: bool = False,
    dry_run: bool = False,
) -> State[Any]:
    """Make a version the champion, if it passes the gate.

    Args:
        dataset: the student's data set.
        version: its number (default: the newest).
        accept_unknown: accept an accuracy that cannot be measured.
        dry_run: change nothing.

    Returns:
        Completed; or failed if the version is refused, or could not be examined. The artifact has
        all checks.
    """
    log = get_run_logger()
    flags = {"--accept-unknown": accept_unknown, "--dry-run": dry_run}
    options = [flag for flag, is_set in flags.items() if is_set]
    verb = ("promote", _reference(dataset, version), "--json", *options)
    try:
        decision = _registry(verb, dataset, lambda line: log.info("%s", line))
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


def describe(decision: Decision, tracking_uri: str | None) -> str:
    """Return a decision as Markdown, with a link to MLflow's server, if there is one."""
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
        f"In MLflow: {_link(decision, tracking_uri)}",
    ]
    return "\n\n".join(parts) + "\n"


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument(
        "reference", metavar="DATA_SET[/VERSION]", help="version to promote (default: the newest)"
    )
    parser.add_argument(
        "--accept-unknown",
        action="store_true",
        help="accept an accuracy that cannot be measured",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the outcome, change nothing")
    options = parser.parse_args(arguments)
    dataset, slash, number = options.reference.partition("/")
    if slash and not number.isdecimal():
        raise BadParams(
            f"'{options.reference}' names no version; give {dataset}/<number>, or {dataset}"
        )
    version = int(number) if slash else None
    check_server(PREFECT_API_URL.value())
    check_name(dataset)  # bad input, before Prefect starts
    _registry(("show", _reference(dataset, version), "--json"), dataset, lambda _: None)
    return promote(dataset, version, options.accept_unknown, options.dry_run, return_state=True)


def _reference(dataset: str, version: int | None) -> str:
    return dataset if version is None else f"{dataset}/{version}"


def _registry(arguments: Sequence[str], dataset: str, on_line: Callable[[str], None]) -> Any:
    """Return the JSON of a command `promptkd registry`, without secrets.

    Raises:
        PdError: it prints none.
    """
    with TemporaryFile("w+", encoding="utf-8") as result:
        command = [*PROMPTKD, "registry", *arguments]
        ended = run(command, profile_of(dataset), on_line, result=result)
        result.seek(0)
        text = result.read()
    if ended.status not in _DECIDED or not text.strip():
        raise PdError(ended.reason)
    return json.loads(masked(text))


def _numbers(check: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number that decided, and its limit."""
    if (measure := check["measure"]) is None:
        return "", ""
    value, limit = (f"{measure[key]:.4g} {measure['unit']}".strip() for key in ("value", "limit"))
    return value, f"{measure['wanted']} {limit}"


def _link(decision: Decision, tracking_uri: str | None) -> str:
    """Return a link to a version's page on MLflow's server, or the version's URI."""
    if not (tracking_uri or "").startswith("http"):
        return f"`{decision['uri']}`"
    server = without_login(tracking_uri or "").rstrip("/")
    page = f"{server}/#/models/{decision['name']}/versions/{decision['version']}"
    return f"[{decision['uri']}]({page})"


if __name__ == "__main__":
    sys.exit(main())
