"""The flow `monitor` reads a service's report, publishes it, and fails on drift."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer, file_server
from http_server import Handler, http_server
from prefect_home import artifacts, run_flow, states

from flows import monitor as flow
from flows.artifacts import key_of
from pd_core.core.errors import BadParams, PdError
from pd_core.mlops.drift import Monitor, Reference

NAMES = ("one|other", "beta", "gamma")
MODEL = {"name": "promptkd-Embedded_greek", "version": 3, "classes": list(NAMES)}


def report(*, seen: int = 200, drifted: bool = False) -> dict[str, Any]:
    """Return a monitor's report about some images."""
    rng = np.random.default_rng(0)

    def answers(count: int, shift: float) -> tuple[Any, Any]:
        features = rng.normal(size=(count, 8)).astype(np.float32)
        return rng.dirichlet(np.ones(3), count).astype(np.float32), features + shift

    watched = Monitor(Reference.of(*answers(300, 0.0)), NAMES)
    if seen:
        watched.observe(*answers(seen, 2.0 if drifted else 0.0))
    return watched.report()


@pytest.fixture(name="server")
def _server() -> Iterator[FileServer]:
    with file_server() as running:
        running.add("model", json.dumps(MODEL).encode())
        yield running


def test_images_like_those_of_the_training_are_no_drift() -> None:
    text, message = flow.describe(MODEL, report())
    assert "like those of the training" in message
    assert text.startswith(f"# promptkd-Embedded_greek, version 3\n\n{message}")
    assert "| embeddings | 0." in text
    assert "drifted |" not in text


def test_drift_is_named_with_its_tests() -> None:
    text, message = flow.describe(MODEL, report(drifted=True))
    assert "drifted, by embeddings (distance " in message
    assert text.count("| drifted |") == 1


def test_a_stricter_level_asks_for_more_certainty() -> None:
    content = report(drifted=True)
    assert "drifted" in flow.describe(MODEL, content, level=1e-6)[1]
    assert "like those" in flow.describe(MODEL, content, level=1e-300)[1]


def test_without_images_there_is_no_verdict() -> None:
    text, message = flow.describe(MODEL, report(seen=0))
    assert "too few" in message
    assert "| window | - |" in text


def test_the_table_has_the_most_changed_classes_beside_the_reference() -> None:
    content = report()
    text, _ = flow.describe(MODEL, content)
    first = content["classes"][0]
    row = f"| one\\|other | {first['total']} | {first['window']:.1%} | {first['reference']:.1%} |"
    assert row in text.partition("## Classes")[2]
    assert "classes whose share" not in text
    content["classes"] *= 100
    assert "and 280 classes whose share" in flow.describe(MODEL, content)[0]


def test_a_report_of_another_structure_is_refused() -> None:
    with pytest.raises(PdError, match="malformed at 'drift'"):
        flow.describe(MODEL, {"pictures": 3})


def test_an_address_with_a_login_and_a_malformed_one_are_refused() -> None:
    with pytest.raises(BadParams, match="holds a login") as caught:
        flow.get_json("http://me:hidden@127.0.0.1:9", "model")
    assert "hidden" not in str(caught.value)
    with pytest.raises(BadParams, match="is no address"):
        flow.get_json("file:///etc", "passwd")
    with pytest.raises(PdError, match=r"127\.0\.0\.\.1"):
        flow.get_json("http://127.0.0..1:8000", "model")


def test_a_service_that_does_not_respond_is_refused_before_prefect_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flow, "monitor", lambda *_, **__: pytest.fail("Prefect was started"))
    assert flow.main(["http://127.0.0.1:9"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert "http://127.0.0.1:9/monitoring" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("monitoring", b"[1]", "not a JSON object"),
        ("monitoring", b"<html>", "not a JSON object"),
        ("nothing", b"{}", "status 404"),
    ],
)
def test_a_response_of_another_kind_is_refused(
    server: FileServer, path: str, content: bytes, reason: str
) -> None:
    server.add("monitoring", content)
    with pytest.raises(PdError, match=reason):
        flow.get_json(server.base, path)


def test_the_first_api_key_is_sent_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    class Service(Handler):
        def do_GET(self) -> None:  # noqa: N802
            keys.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with http_server(Service) as address:
        flow.get_json(address, "model")
        monkeypatch.setenv("PD_SERVE_API_KEYS", "first-0123456789,second-0123456789")
        flow.get_json(address, "model")

    assert keys == [None, "Bearer first-0123456789"]


def test_an_artifacts_key_has_only_letters_that_prefect_accepts() -> None:
    assert key_of("monitoring", "promptkd-Embedded_greek") == "monitoring-promptkd-embedded-greek"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_without_a_server_drift_fails_the_flow_and_the_artifact_has_it(
    server: FileServer, tmp_path: Path
) -> None:
    served = server.add("monitoring", json.dumps(report()).encode())
    done = run_flow("monitor", tmp_path, server.base)
    assert done.returncode == 0, done.stderr
    served.content = json.dumps(report(drifted=True)).encode()
    done = run_flow("monitor", tmp_path, server.base)
    assert done.returncode == 2
    assert "drifted, by embeddings" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    home = tmp_path / "prefect"
    assert states(home) == ["COMPLETED", "FAILED"]
    good, bad = artifacts(home)
    assert good[0] == bad[0] == "monitoring-promptkd-embedded-greek"
    assert good[1] == flow.describe(MODEL, report())[0]
    assert bad[1:] == flow.describe(MODEL, report(drifted=True))
