"""The flows run DVC's stages in order, for one data set or all, without a server."""

import importlib
import inspect
import shutil
from pathlib import Path

import psutil
import pytest
import yaml
from command import dvc
from prefect_home import ROOT, run_flow
from waiting import wait_until

from flows import pipeline, refresh
from pd_core.core.errors import MissingFile, PdError, UnknownName
from pd_core.pipeline import processes

GRAPH = {
    "report": frozenset({"evaluate@a", "evaluate@b"}),
    "evaluate@b": frozenset({"student@b", "prepare@b"}),
    "student@b": frozenset({"prepare@b"}),
    "prepare@b": frozenset[str](),
    "tuned_student@a": frozenset({"prepare@a"}),
    "evaluate@a": frozenset({"prepare@a"}),
    "prepare@a": frozenset({"code"}),
    "code": frozenset[str](),
}


def _is_running(command: str) -> bool:
    """True if a command is at work, and not a zombie."""
    processes = [process.info for process in psutil.process_iter(["cmdline", "status"])]
    return any(
        " ".join(info["cmdline"] or ()) == command and info["status"] != psutil.STATUS_ZOMBIE
        for info in processes
    )


def _copy(source: str, target: str) -> str:
    return f"mkdir -p {target} && cp {source} {target}/value"


def _toy_project(
    folder: Path, prepare: str = "mkdir -p {out} && echo ${{item}} > {out}/value"
) -> None:
    """Make a DVC project with stages named like ours."""
    out = {stage: f"data/{stage}/${{key}}" for stage in ("prepare", "student", "evaluate")}
    commands = {
        "prepare": (prepare.format(out=out["prepare"]), []),
        "student": (_copy(f"{out['prepare']}/value", out["student"]), [out["prepare"]]),
        "evaluate": (_copy(f"{out['student']}/value", out["evaluate"]), [out["student"]]),
    }
    stages: dict[str, object] = {
        stage: {
            "foreach": {"embedded_greek": 1, "embedded_arrows": 2},
            "do": {"cmd": command, "deps": deps, "outs": [out[stage]]},
        }
        for stage, (command, deps) in commands.items()
    }
    stages["report"] = {
        "cmd": "cat data/evaluate/*/value > report.txt",
        "deps": ["data/evaluate"],
        "outs": ["report.txt"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    shutil.copy(ROOT / "params.yaml", folder)
    assert dvc(folder, "init", "-q", "--no-scm").returncode == 0


def test_a_plan_has_each_stage_after_those_it_needs_and_not_the_shared_code() -> None:
    assert pipeline.plan(GRAPH, "a") == ["prepare@a", "evaluate@a", "tuned_student@a"]
    assert pipeline.plan(GRAPH, "b") == ["prepare@b", "student@b", "evaluate@b"]


def test_the_ends_of_a_plan_are_the_stages_that_no_other_one_needs() -> None:
    assert pipeline.ends(GRAPH, pipeline.plan(GRAPH, "a")) == ["evaluate@a", "tuned_student@a"]
    assert pipeline.ends(GRAPH, []) == []


def test_all_data_sets_are_chosen_if_none_is_named_and_each_only_once() -> None:
    assert pipeline.choose(GRAPH) == ["a", "b"]
    assert pipeline.choose(GRAPH, ["b", "b"]) == ["b"]
    graph = {"evaluate@greek": frozenset[str](), "evaluate@arrows": frozenset[str]()}
    with pytest.raises(UnknownName, match="did you mean 'greek'"):
        pipeline.choose(graph, ["greec"])


def test_dvcs_output_has_how_a_stage_came_up_to_date() -> None:
    output = [
        "Running stage 'prepare@a':",
        "Stage 'teacher@a' is cached - skipping run, checking out outputs",
        "Stage 'student@a' didn't change, skipping",
    ]
    states = pipeline.how(["prepare@a", "teacher@a", "student@a"], output)
    assert list(states.values()) == ["computed", "from the cache", "up to date"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("-9", True), ("75", True), ("143", True), ("2", False), ("1", False), ("755", False)],
)
def test_a_stage_that_a_signal_ended_was_cut_off(status: str, expected: bool) -> None:
    line = f"ERROR: failed to reproduce 'a': failed to run: python3 x, exited with {status}"
    assert pipeline.was_cut_off([line]) is expected


def test_a_flood_of_lines_is_cut(tmp_path: Path) -> None:
    logged: list[str] = []
    ended = processes.run(["seq", "500"], tmp_path, logged.append)
    assert ended.status == 0
    assert len(ended.output) == 500
    assert logged[:60] == [str(number) for number in range(1, 61)]
    assert logged[60:] == ["(440 lines were left out)"]


def test_a_command_and_all_that_it_started_end_with_the_block(tmp_path: Path) -> None:
    script = "sleep 71.25 & echo started; sleep 71.25"

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(["bash", "-c", script], tmp_path, interrupt)
    wait_until(lambda: not _is_running("sleep 71.25"), seconds=10)


def test_the_reason_of_a_failure_is_the_first_error_that_was_named(tmp_path: Path) -> None:
    script = "echo working; echo error: no room; echo ERROR: failed to reproduce; exit 3"
    ended = processes.run(["bash", "-c", script], tmp_path, lambda _: None)
    assert (ended.status, ended.reason) == (3, "no room")


def test_changes_are_listed_by_data_set() -> None:
    status = {
        "student@a": [{"changed deps": {"params.yaml": {"student.lr": "modified"}}}],
        "evaluate@a": [{"changed deps": {"pd_core/fit.py": "modified"}}, "changed command"],
        "report": [{"changed deps": {"data/evaluate": "modified"}}],
    }
    expected = {"a": "student.lr modified, pd_core/fit.py modified, changed command"}
    assert refresh.changed(status, ["a", "b"]) == expected
    many = {f"stage{number}@b": [{"changed deps": {str(number): "new"}}] for number in range(7)}
    assert refresh.changed(many, ["a", "b"])["b"].endswith("4 new and 2 more")


def test_the_graph_is_dvcs_own(tmp_path: Path) -> None:
    _toy_project(tmp_path)
    graph = pipeline.read_graph(tmp_path)
    assert len(graph) == 7
    assert graph["student@embedded_greek"] == {"prepare@embedded_greek"}
    assert graph["report"] == {"evaluate@embedded_greek", "evaluate@embedded_arrows"}


def test_a_folder_without_a_readable_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no 'dvc\.yaml'"):
        pipeline.read_graph(tmp_path)
    _toy_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, dep: [y]}}")
    with pytest.raises(PdError, match="DVC refuses") as caught:
        pipeline.read_graph(tmp_path)
    assert "\n" not in str(caught.value)


def test_deployments_point_at_a_flow_and_all_its_parameters() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    names = {"gpu", "quickstart", "paper", "trials", "agents", "gate", "nightly", "hourly"}
    assert {deployment["name"] for deployment in content["deployments"]} == names
    for deployment in content["deployments"]:
        path, _, name = deployment["entrypoint"].rpartition(".")
        module = importlib.import_module(path)
        parameters = inspect.signature(getattr(module, name).fn).parameters.values()
        required = {item.name for item in parameters if item.default is inspect.Parameter.empty}
        assert set(deployment["parameters"]) | required == {item.name for item in parameters}


@pytest.mark.slow
def test_without_a_server_the_flow_gives_what_dvc_repro_gives(tmp_path: Path) -> None:
    by_flow, by_hand = tmp_path / "flow", tmp_path / "hand"
    for folder in (by_flow, by_hand):
        folder.mkdir()
        _toy_project(folder)
    done = run_flow("benchmark", by_flow)
    assert done.returncode == 0, done.stderr
    assert "Running stage 'student@embedded_arrows'" in done.stdout + done.stderr
    assert dvc(by_hand, "repro", "-q").returncode == 0
    assert (by_flow / "report.txt").read_bytes() == (by_hand / "report.txt").read_bytes()
    locks = [yaml.safe_load((folder / "dvc.lock").read_text()) for folder in (by_flow, by_hand)]
    assert locks[0] == locks[1]


@pytest.mark.slow
def test_a_stage_that_fails_stops_the_flow_and_is_named(tmp_path: Path) -> None:
    _toy_project(tmp_path, prepare="echo no data at all && exit 3")
    done = run_flow("benchmark", tmp_path, "embedded_arrows")
    assert done.returncode == 2
    assert "no data at all" in done.stdout + done.stderr
    assert "\nerror: embedded_arrows: 'prepare@embedded_arrows' failed with status" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "data" / "evaluate").exists()
