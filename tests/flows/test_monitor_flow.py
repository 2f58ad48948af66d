"""The flow `monitor` asks a service over HTTP, keeps a table, and fails if pictures drifted."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer, file_server
from prefect_home import artifacts, states

from flows import monitor as flow
from flows import tables
from pd_core.core.errors import BadParams, PdError
from pd_core.mlops.drift import Monitor, Reference

ROOT = Path(__file__).parents[2]
NAMES = ("one|other", "beta", "gamma")
MODEL = {"name": "promptkd-Embedded_greek", "version": 3, "classes": list(NAMES)}


def report(*, seen: int = 200, drifted: bool = False) -> dict[str, Any]:
    """Let a monitor see pictures, and report."""
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


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if "PREFECT_API_URL" not in key}
    return subprocess.run(
        [sys.executable, "-m", "flows.monitor", *arguments],
        cwd=folder,  # where no settings of the user's are
        env={**clean, "PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_pictures_as_in_training_are_said_to_be_so() -> None:
    text, said = flow.describe(MODEL, report())
    assert said == "The pictures are as those of the training."
    assert text.startswith("# promptkd-Embedded_greek, version 3\n\nThe pictures are as")
    assert "| embeddings | 0." in text
    assert "apart |" not in text


def test_drift_is_named_with_its_tests() -> None:
    text, said = flow.describe(MODEL, report(drifted=True))
    assert said.startswith("The pictures have drifted, by embeddings (distance ")
    assert "p = " in said
    assert text.count("| apart |") == 1


def test_a_stricter_level_asks_for_more_certainty() -> None:
    found = report(drifted=True)
    assert "drifted" in flow.describe(MODEL, found, level=1e-6)[1]
    assert "as those of the training" in flow.describe(MODEL, found, level=1e-300)[1]


def test_before_there_are_pictures_there_is_no_verdict() -> None:
    text, said = flow.describe(MODEL, report(seen=0))
    assert said == "There are too few different pictures to tell."
    assert "| window | - |" in text


def test_the_table_shows_every_class_beside_the_reference() -> None:
    found = report()
    text, _ = flow.describe(MODEL, found)
    table = text.partition("## Classes")[2]
    first = found["classes"][0]
    row = f"| one\\|other | {first['total']} | {first['window']:.1%} | {first['reference']:.1%} |"
    assert row in table
    assert "classes whose share" not in table


def test_of_many_classes_only_the_most_changed_are_shown() -> None:
    found = report()
    found["classes"] *= 100
    text, _ = flow.describe(MODEL, found)
    assert "and 280 classes whose share has changed less" in text


def test_a_report_of_another_kind_is_refused() -> None:
    with pytest.raises(PdError, match="wrong at 'drift'"):
        flow.describe(MODEL, {"pictures": 3})


def test_an_address_with_a_login_is_refused_without_showing_it() -> None:
    with pytest.raises(BadParams, match="holds a login") as caught:
        flow.ask("http://me:hidden@127.0.0.1:9", "model")
    assert "hidden" not in str(caught.value)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(BadParams, match="is no address"):
        flow.ask("file:///etc", "passwd")


def test_a_service_that_does_not_answer_is_said_before_prefect_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flow, "monitor", lambda *_, **__: pytest.fail("Prefect was started"))
    assert flow.main(["http://127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 'http://127.0.0.1:9/monitoring' does not tell (")
    assert said.count("\n") == 1


def test_what_answers_otherwise_is_said(server: FileServer) -> None:
    server.add("monitoring", b"[1]")
    with pytest.raises(PdError, match="no JSON object"):
        flow.ask(server.base, "monitoring")
    server.files["monitoring"].content = b"<html>"
    with pytest.raises(PdError, match="does not tell"):
        flow.ask(server.base, "monitoring")
    with pytest.raises(PdError, match="answers 404"):
        flow.ask(server.base, "nothing")


def test_an_artifacts_key_has_no_letters_that_prefect_refuses() -> None:
    key = tables.key_of("monitoring", "promptkd-Embedded_greek")
    assert key == "monitoring-promptkd-embedded-greek"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_without_a_server_drift_fails_the_flow_and_the_artifact_shows_it(
    server: FileServer, tmp_path: Path
) -> None:
    served = server.add("monitoring", json.dumps(report()).encode())
    done = _run(tmp_path, server.base)
    assert done.returncode == 0, done.stderr
    served.content = json.dumps(report(drifted=True)).encode()
    done = _run(tmp_path, server.base)
    assert done.returncode == 2
    assert "\nerror: The pictures have drifted, by embeddings" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert states(tmp_path) == ["COMPLETED", "FAILED"]
    good, bad = artifacts(tmp_path)
    assert good[0] == bad[0] == "monitoring-promptkd-embedded-greek"
    assert good[1] == flow.describe(MODEL, report())[0]
    assert bad[1:] == flow.describe(MODEL, report(drifted=True))
