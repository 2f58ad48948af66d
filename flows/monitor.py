"""Flow that alarms when a service's images have drifted: `python -m flows.monitor URL`.

It reads the statistics of `promptkd serve`, publishes them as an artifact, and fails on drift; by
an hourly schedule (`prefect.yaml`) that is the alarm. No server is needed; if one is set
(`PD_PREFECT_API_URL`), the run is recorded there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import artifacts
from flows.commands import check_server, command
from pd_core.core.errors import BadParams, PdError
from pd_core.mlops.drift import LEVEL, SAME, TOO_FEW, drifted, verdict
from pd_core.pipeline.redaction import has_login, masked
from pd_core.pipeline.settings import load_settings

_TIMEOUT_SECONDS = 30.0
_MAX_CLASSES = 20  # in the table; those whose share has changed most
_MESSAGES = {
    SAME: "The images are like those of the training.",
    TOO_FEW: "There are too few different images to decide.",
}


@flow(name="monitor")
def monitor(url: str, level: float = LEVEL) -> State[Any]:
    """Compare the images that a service receives with the training images of its student.

    Args:
        url: of the service, for example `http://127.0.0.1:8000`.
        level: rate of false alarms, of all comparisons of images that have not drifted.

    Returns:
        Completed; or failed if the images have drifted, or the service does not respond. The
        artifact's key has the model's name.
    """
    try:
        model, report = get_json(url, "model"), get_json(url, "monitoring")
        text, message = describe(model, report, level=level)
    except PdError as error:
        return Failed(message=str(error))
    create_markdown_artifact(
        key=artifacts.key_of("monitoring", str(model["name"])), markdown=text, description=message
    )
    state = Failed if drifted(report["drift"]["tests"], level=level) else Completed
    return state(message=message)


def get_json(url: str, path: str) -> dict[str, Any]:
    """Get a JSON object from a service, with the first of `PD_SERVE_API_KEYS` if there are any.

    Raises:
        BadParams: the address is malformed, or has a password, which Prefect would show.
        PdError: no response, or one that is not a JSON object.
    """
    if has_login(url):
        raise BadParams(f"'{masked(url)}' holds a login, and Prefect shows it; leave it out")
    if not url.startswith(("http://", "https://")):
        raise BadParams(f"'{url}' is no address; give one like http://127.0.0.1:8000")
    address = f"{url.rstrip('/')}/{path}"
    keys = load_settings().api_keys
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        response = requests.get(address, headers=headers, timeout=_TIMEOUT_SECONDS)
        content = response.json()
        if response.ok and isinstance(content, dict):
            return content
        detail = content.get("detail", "") if isinstance(content, dict) else "not a JSON object"
        reason = f"status {response.status_code} {detail}".rstrip()
    except requests.JSONDecodeError:
        reason = f"status {response.status_code} not a JSON object"
    except (requests.RequestException, ValueError) as error:  # of urllib3: a malformed host
        reason = type(error).__name__
    raise PdError(f"no report from '{address}' ({reason}); is `promptkd serve` running there?")


def describe(
    model: Mapping[str, Any], report: Mapping[str, Any], *, level: float = LEVEL
) -> tuple[str, str]:
    """Write a report as Markdown.

    Args:
        model: response of the service's `/model`.
        report: response of its `/monitoring`; see `pd_core.mlops.drift.Monitor.report`.
        level: rate of false alarms.

    Returns:
        The Markdown, and the verdict in one line.

    Raises:
        PdError: the report has another structure.
    """
    try:
        tests, window = report["drift"]["tests"], report["window"]
        names = drifted(tests, level=level)
        message = _message(tests, names) if names else _MESSAGES[verdict(tests, level=level)]
        rows = [
            (name, *map(_number, (test["distance"], test["p"])), "drifted" * (name in names))
            for name, test in tests.items()
        ]
        parts = [
            f"# {model['name']}, version {model['version']}",
            message,
            f"{report['pictures']} images since it was loaded; compared are the last "
            f"{window['pictures']}, of which {window['different']} are different.",
            "## Drift",
            artifacts.markdown(("test", "distance", "p", ""), rows),
            f"Drifted means that p is below {level / len(tests):.2g}.",
            "## Confidence",
            _confidence(report["confidence"]),
            *_classes(report["classes"]),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PdError(
            f"the service's report is malformed at {error}; is the service of this version?"
        ) from None
    return "\n\n".join(parts) + "\n", message


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.monitor", description=__doc__)
    parser.add_argument(
        "url", metavar="URL", help="URL of the service, such as http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--level", type=float, default=LEVEL, help="rate of false alarms (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    check_server(PREFECT_API_URL.value())
    get_json(options.url, "monitoring")  # a wrong address is refused before Prefect starts
    return monitor(options.url, options.level, return_state=True)


def _message(tests: Mapping[str, Any], names: Sequence[str]) -> str:
    details = ", ".join(
        f"{name} (distance {tests[name]['distance']:.2f}, p = {tests[name]['p']:.1g})"
        for name in names
    )
    return f"The images have drifted, by {details}."


def _confidence(confidence: Mapping[str, Any]) -> str:
    sides = {
        side: {} if values is None else {"mean": values["mean"], **values["quantiles"]}
        for side, values in confidence.items()
    }
    names = list(sides["reference"])
    rows = [(side, *(_number(sides[side].get(name)) for name in names)) for side in sides]
    return artifacts.markdown(("", "mean", *(f"quantile {name}" for name in names[1:])), rows)


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    changed = sorted(classes, key=lambda row: -abs(row["window"] - row["reference"]))
    rows = [
        (row["name"], str(row["total"]), f"{row['window']:.1%}", f"{row['reference']:.1%}")
        for row in changed[:_MAX_CLASSES]
    ]
    left = len(classes) - len(rows)
    rest = [f"and {left} classes whose share has changed less"] if left else []
    return ["## Classes", artifacts.markdown(("class", "ever", "window", "reference"), rows), *rest]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
