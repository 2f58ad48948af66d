"""A restart of Prefect's server changes nothing that was set on it."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from agents import ROOT, Server, clone, serving
from prefect.client.schemas.responses import DeploymentResponse

from flows.server import _differences


def test_an_entry_with_prefects_defaults_is_compared() -> None:
    entry = {"name": "own", "entrypoint": "flows.refresh.refresh"}
    there = DeploymentResponse(
        name="own",
        flow_id=uuid4(),
        entrypoint=entry["entrypoint"],
        work_queue_name="default",
        labels=None,
    )

    assert _differences(entry, there) == []
    assert _differences({**entry, "tags": ["mine"]}, there) == ["tags"]


def deployments(server: Server) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in server.ask("/deployments/filter")}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_what_was_set_on_the_server_outlives_a_restart_and_what_is_missing_is_created(
    tmp_path: Path,
) -> None:
    code = clone(ROOT, tmp_path / "code")
    with serving(tmp_path, code) as server:
        made = deployments(server)
        (schedule,) = made["nightly"]["schedules"]
        address = f"{server.api}/deployments/{made['nightly']['id']}"
        changes: list[tuple[str, dict[str, Any]]] = [
            (f"{address}/schedules/{schedule['id']}", {"active": True}),
            (address, {"parameters": {"profile_dir": "paper"}}),
        ]
        for place, values in changes:
            requests.patch(place, json=values, timeout=30).raise_for_status()
        hourly = made["hourly"]["id"]
        requests.delete(f"{server.api}/deployments/{hourly}", timeout=30).raise_for_status()

    with serving(tmp_path, code) as server:
        again = deployments(server)

    assert again.keys() == made.keys()
    assert again["hourly"]["id"] != hourly
    assert again["nightly"]["id"] == made["nightly"]["id"]
    assert again["nightly"]["parameters"] == {"profile_dir": "paper"}
    assert [each["active"] for each in again["nightly"]["schedules"]] == [True]
    log = (tmp_path / "server.log").read_text()
    assert "deployment 'nightly' keeps its parameters, schedules, other than in prefect.yaml" in log
    assert log.count(" keeps its ") == 1
