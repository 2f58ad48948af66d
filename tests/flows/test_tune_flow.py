"""The flow `tune`: trials of one search side by side on agents, or here without a server."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import short_search
from agents import agent, clone, serving
from git_repository import commit
from prefect_home import artifacts, run_flow
from short_project import NAME

from flows import tune
from pd_core.core.errors import BadParams

ROOT = Path(__file__).parents[2]


def test_agents_that_share_no_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_DVC_REMOTE", "s3://bucket/prefix")
    with pytest.raises(BadParams, match="PD_DVC_REMOTE .* unset it"):
        tune.check_folder()


def test_an_unknown_data_set_is_refused_before_prefect_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tune.main(["embedded_greec"]) == 2
    assert "'embedded_greec'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with short trainings, and all stages of a data set before the student."""
    folder = clone(ROOT, tmp_path_factory.mktemp("tune") / "clone")
    short_search.shorten(folder / "params.yaml")
    commit(folder)
    short_search.run_until_student(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_agents_run_the_trials_of_a_search_side_by_side(project: Path, tmp_path: Path) -> None:
    with serving(tmp_path, project) as server, ExitStack() as stack:
        for arguments in (("--gpu", "0"), ("--gpu", "1"), ()):
            stack.enter_context(agent(project, server.api, *arguments))
        run = server.run("tune/agents", "search", dataset=NAME, trials=5)
        state = server.ended(run, seconds=600)
        assert state["type"] == "COMPLETED", state["message"]
        assert server.never_double_booked()
        text = server.artifacts()[f"tune-{NAME.replace('_', '-')}-student"]
    assert "tuned: 5 trials, validation" in text
    trials = short_search.trials(project)
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5]
    first, second = trials[:2]
    assert max(first.started, second.started) < min(first.ended, second.ended)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_server_the_search_runs_here_and_leaves_the_proposal(
    project: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = run_flow("tune", project, NAME, "--trials", "2", PREFECT_HOME=str(home))
    assert done.returncode == 0, done.stderr
    ((key, text, _),) = [each for each in artifacts(home) if each[0].startswith("tune-")]
    assert key == f"tune-{NAME.replace('_', '-')}-student"
    assert "harmonic mean on" in text

    done = run_flow(
        "tune", project, NAME, "--stage", "student", "--trials", "0", PREFECT_HOME=str(home)
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
