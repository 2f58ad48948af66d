"""Prefect's server knows new data sets, and a restart changes nothing that was set on it."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import photos
import pytest
import requests
from agents import ROOT, Server, clone, serving
from command import promptkd
from prefect.client.schemas.responses import DeploymentResponse
from waiting import wait_until

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


def add(project: Path, name: str) -> None:
    """Add a data set by its command."""
    photos.write(project.parent / name)
    done = promptkd(project, "data", "add", name, "--labelled", f"../{name}/labelled")
    assert done.returncode == 0, done.stderr


def offered(server: Server) -> dict[str, list[str]]:
    """Return the data sets that the form of each deployment offers."""
    schemas = {
        name: each["parameter_openapi_schema"]["properties"]
        for name, each in deployments(server).items()
    }
    names = {name: json.dumps(schema) for name, schema in schemas.items()}
    return {
        name: [key for key in ("embedded_greek", "dtd", "second", "third") if f'"{key}"' in text]
        for name, text in names.items()
    }


def scheduled(server: Server) -> set[str]:
    """Return the deployments with runs that their schedule has made."""
    runs = server.ask("/flow_runs/filter", limit=200)
    made = {run["deployment_id"] for run in runs if run["auto_scheduled"]}
    return {name for name, each in deployments(server).items() if each["id"] in made}


def deployments(server: Server) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in server.ask("/deployments/filter")}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_what_was_set_on_the_server_outlives_a_restart_and_new_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
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

    add(code, "second")
    with serving(tmp_path, code) as server:
        own = ["embedded_greek", "second"]
        assert offered(server)["quickstart"] == own
        with pytest.raises(requests.HTTPError, match="422|409"):
            server.run("distill-dataset/gpu", "early", dataset="third")
        add(code, "third")
        everything = ["embedded_greek", "dtd", "second", "third"]
        expected = {
            "quickstart": [*own, "third"],
            "paper": ["dtd"],
            **dict.fromkeys(("gpu", "trials", "agents", "gate"), everything),
            "nightly": [],
            "hourly": [],
        }
        wait_until(lambda: offered(server) == expected, "the data set is offered", seconds=40)
        for flow, parameters in (
            ("distill-dataset/gpu", {"dataset": "third"}),
            ("benchmark/quickstart", {"datasets": ["second", "third"]}),
        ):
            run = server.run(flow, "late", **parameters)
            assert server.state(run)["type"] in ("SCHEDULED", "PENDING")
        again = deployments(server)
        # Resumed in the UI; Prefect's scheduler makes the runs to come.
        wait_until(lambda: "nightly" in scheduled(server), "runs are scheduled", seconds=100)

    assert again.keys() == made.keys()
    assert again["hourly"]["id"] != hourly
    assert again["nightly"]["id"] == made["nightly"]["id"]
    assert again["nightly"]["parameters"] == {"profile_dir": "paper"}
    assert [each["active"] for each in again["nightly"]["schedules"]] == [True]
    log = (tmp_path / "server.log").read_text()
    assert "deployment 'nightly' keeps its parameters, schedules, other than in prefect.yaml" in log
    assert log.count(" keeps its ") == 1
