"""Whether a service still sees what its student was trained on: `python -m flows.monitor URL`.

The flow asks `promptkd serve` for its statistics, keeps them as an artifact, a table to read, and
fails if the pictures have drifted; by an hourly schedule (`prefect.yaml`) that is the alarm. No
server is needed; if one is set (`PD_PREFECT_API_URL`), run and artifact are kept there.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import tables
from flows.commands import check_server, command
from pd_core.core.errors import BadParams, PdError
from pd_core.mlops.drift import LEVEL, SAME, TOO_FEW, apart, verdict
from pd_core.pipeline.redaction import has_login, masked

_SECONDS = 30.0
_MOST_CLASSES = 20  # in the table; those whose share has changed most
_SAID = {
    SAME: "The pictures are as those of the training.",
    TOO_FEW: "There are too few different pictures to tell.",
}


@flow(name="monitor")
def monitor(url: str, level: float = LEVEL) -> State[Any]:
    """Compare what a service sees with what its student was trained on.

    Args:
        url: of the service, for example `http://127.0.0.1:8000`.
        level: how often an alarm may be false, of all looks at pictures that have not drifted.

    Returns:
        Completed; or failed if the pictures have drifted, or the service does not say. The
        artifact is called like the model.
    """
    try:
        model, report = ask(url, "model"), ask(url, "monitoring")
        text, message = describe(model, report, level=level)
    except PdError as error:
        return Failed(message=str(error))
    create_markdown_artifact(
        key=tables.key_of("monitoring", str(model["name"])), markdown=text, description=message
    )
    drifted = apart(report["drift"]["tests"], level=level)
    return Failed(message=message) if drifted else Completed(message=message)


def ask(url: str, what: str) -> dict[str, Any]:
    """Get a JSON object from a path of a service.

    Raises:
        BadParams: the address is none, or holds a password, which Prefect would show.
        PdError: nothing answers there, or something else does.
    """
    if has_login(url):
        raise BadParams(f"'{masked(url)}' holds a login, and Prefect shows it; leave it out")
    if not url.startswith(("http://", "https://")):
        raise BadParams(f"'{url}' is no address; give one like http://127.0.0.1:8000")
    address = f"{url.rstrip('/')}/{what}"
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        reason = _detail(error)
    except (OSError, ValueError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
    else:
        if isinstance(found, dict):
            return found
        reason = "it is no JSON object"
    raise PdError(f"'{address}' does not tell ({reason}); `promptkd serve` makes such a service")


def describe(
    model: Mapping[str, Any], report: Mapping[str, Any], *, level: float = LEVEL
) -> tuple[str, str]:
    """Write a report down for people.

    Args:
        model: the service's answer at `/model`.
        report: that at `/monitoring`; see `pd_core.mlops.drift.Monitor.report`.
        level: of a false alarm.

    Returns:
        The report as Markdown, and the verdict in one line.

    Raises:
        PdError: it is no such report.
    """
    try:
        tests, window = report["drift"]["tests"], report["window"]
        said, marks = _verdict(tests, level), dict.fromkeys(apart(tests, level=level), "apart")
        parts = [
            f"# {model['name']}, version {model['version']}",
            said,
            f"{report['pictures']} pictures since it was loaded; compared are the last "
            f"{window['pictures']}, of which {window['different']} are different.",
            "## Drift",
            tables.markdown(
                ("test", "distance", "p", ""),
                [
                    (name, _number(test["distance"]), _number(test["p"]), marks.get(name, ""))
                    for name, test in tests.items()
                ],
            ),
            f"Apart means that p is below {level / len(tests):.2g}.",
            "## Confidence",
            _confidence(report["confidence"]),
            *_classes(report["classes"]),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PdError(f"the service's report is wrong at {error}; is it of this version?") from None
    return "\n\n".join(parts) + "\n", said


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.monitor", description=__doc__)
    parser.add_argument("url", metavar="URL", help="of the service, as http://127.0.0.1:8000")
    parser.add_argument("--level", type=float, default=LEVEL, help="of a false alarm (%(default)s)")
    given = parser.parse_args(arguments)
    check_server(PREFECT_API_URL.value())
    ask(given.url, "monitoring")  # a wrong address, before Prefect starts
    return monitor(given.url, given.level, return_state=True)


def _detail(error: urllib.error.HTTPError) -> str:
    """Return the status, with the reason that a service gives."""
    try:
        with error:
            return f"{error.code}: {json.load(error)['detail']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"it answers {error.code}"


def _verdict(tests: Mapping[str, Any], level: float) -> str:
    names = apart(tests, level=level)
    if not names:
        return _SAID[verdict(tests, level=level)]
    details = ", ".join(
        f"{name} (distance {tests[name]['distance']:.2f}, p = {tests[name]['p']:.1g})"
        for name in names
    )
    return f"The pictures have drifted, by {details}."


def _confidence(confidence: Mapping[str, Any]) -> str:
    sides = {
        side: {} if values is None else {"mean": values["mean"], **values["quantiles"]}
        for side, values in confidence.items()
    }
    names = list(sides["reference"])
    rows = [(side, *(_number(sides[side].get(name)) for name in names)) for side in sides]
    return tables.markdown(("", "mean", *(f"quantile {name}" for name in names[1:])), rows)


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    changed = sorted(classes, key=lambda one: -abs(one["window"] - one["reference"]))
    rows = [
        (one["name"], str(one["total"]), f"{one['window']:.1%}", f"{one['reference']:.1%}")
        for one in changed[:_MOST_CLASSES]
    ]
    left = len(classes) - len(rows)
    rest = [f"and {left} classes whose share has changed less"] if left else []
    return ["## Classes", tables.markdown(("class", "ever", "window", "reference"), rows), *rest]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
