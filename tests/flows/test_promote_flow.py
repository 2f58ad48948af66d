"""The flow `promote` runs the gate, publishes the decision, and fails if it is a refusal."""

import shutil
import subprocess
from pathlib import Path

import pytest
import registered
from prefect_home import ROOT, artifacts, run_flow, states
from promoting import NAME
from registered import champion, good, publish
from registry_project import project, store

from flows import promote as flow

__all__ = ["good", "project", "store"]  # fixtures

DECISION = {
    "name": NAME,
    "version": 3,
    "uri": f"models:/{NAME}/3",
    "champion_before": 2,
    "dry_run": False,
    "accepted": False,
    "conclusion": "version 3 of 'promptkd-tiny' is refused, 1 of 2 checks failed; size: 7 MB",
    "checks": [
        {
            "name": "size",
            "passed": False,
            "finding": "7 MB",
            "measure": {"value": 7.12345, "limit": 5.0, "wanted": "at most", "unit": "MB"},
        },
        {"name": "intact", "passed": True, "finding": "a | b", "measure": None},
    ],
    "reasons": ["size: 7 MB"],
}

# SQLAlchemy's, about MLflow's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")


@pytest.fixture
def code(project: Path) -> Path:
    """Let the project have the flows, which offer its data sets."""
    ours = shutil.ignore_patterns("__pycache__", ".dvc", "data")
    for folder in ("flows", "paper"):
        shutil.copytree(ROOT / folder, project / folder, ignore=ours)
    registered.commit(project)
    return project


def run(project: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_flow("promote", project, *arguments, PREFECT_HOME=str(home))


def test_a_decision_is_written_down_with_its_numbers_and_reasons() -> None:
    text = flow.describe(DECISION, None)
    assert text.startswith(
        f"# {NAME}, version 3\n\nVersion 3 of 'promptkd-tiny' is refused, 1 of 2"
    )
    assert "## Why not\n\n- size: 7 MB\n" in text
    assert "| size | no | 7.123 MB | at most 5 MB | 7 MB |" in text
    assert "| intact | yes |  |  | a \\| b |" in text
    assert text.endswith(f"In MLflow: `models:/{NAME}/3`\n")
    assert "dry run" not in text
    assert "dry run" in flow.describe({**DECISION, "dry_run": True}, None)


def test_a_version_is_linked_to_its_page_without_the_servers_password() -> None:
    text = flow.describe(DECISION, "https://me:hidden-word@host/mlflow/")
    page = f"https://host/mlflow/#/models/{NAME}/versions/3"
    assert f"In MLflow: [models:/{NAME}/3]({page})\n" in text
    assert "hidden-word" not in text


@pytest.mark.parametrize("reference", ["tiny/new", "tiny/", "tiny/1.5"])
def test_what_names_no_version_is_refused(
    reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flow.main([reference]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: '{reference}' names no version")
    assert stderr.count("\n") == 1


@pytest.mark.usefixtures("store")
def test_what_is_not_there_is_refused_in_one_line_before_prefect_starts(
    code: Path,
    store: str,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(store, good)
    done = run(code, tmp_path / "prefect", "tiny/7")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown version of 'promptkd-tiny' '7'")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "prefect" / "prefect.db").exists()

    monkeypatch.setattr(flow, "promote", lambda *_, **__: pytest.fail("Prefect was started"))
    assert flow.main(["embedded_grek"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown data set 'embedded_grek'; did you mean 'embedded_greek'")
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_good_version_is_promoted_and_a_refused_one_fails_the_flow(
    code: Path, store: str, good: Path, tmp_path: Path
) -> None:
    home = tmp_path / "prefect"
    publish(store, good, registered.lineage(code))

    tried = run(code, home, "tiny/1", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert champion(store) is None
    promoted = run(code, home, "tiny")
    assert promoted.returncode == 0, promoted.stderr
    assert champion(store) == 1
    publish(store, good, registered.dirty(code))
    refused = run(code, home, "tiny/2")

    assert refused.returncode == 2
    assert champion(store) == 1
    message = "version 2 of 'promptkd-tiny' is refused, 1 of 7 checks failed; lineage: code, "
    assert f"\nerror: {message}" in refused.stderr
    assert "trying version 2 in a fresh process" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    assert states(home) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert {key for key, _, _ in artifacts(home)} == {"promotion-tiny"}
    texts = [text for _, text, _ in artifacts(home)]
    assert "would become champion, after none" in texts[0]
    assert "is champion, after none" in texts[1]
    assert "| lineage | no |" in texts[2]
    assert "- lineage: code, params.yaml or dvc.yaml had changes" in texts[2]
    assert artifacts(home)[2][2].startswith(message)
