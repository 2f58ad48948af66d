"""The flow runs DVC's stages in order, for one data set or all, with a server or without."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from command import dvc
from prefect.settings import PREFECT_API_URL, temporary_settings
from waiting import wait_until

from flows import benchmark, pipeline, refresh
from flows.commands import check_server
from pd_core.core.errors import MissingFile, PdError, UnknownName
from pd_core.pipeline import processes

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/api"  # the discard port; nothing listens there

GRAPH = {
    "report": frozenset({"evaluate@a", "evaluate@b"}),
    "evaluate@b": frozenset({"student@b", "prepare@b"}),
    "student@b": frozenset({"prepare@b"}),
    "prepare@b": frozenset[str](),
    "tuned_student@a": frozenset({"prepare@a"}),
    "evaluate@a": frozenset({"prepare@a"}),
    "prepare@a": frozenset[str](),
}


def _works(command: str) -> bool:
    """Whether a command is at work, and not one that has ended and that nobody has asked after."""
    found = psutil.process_iter(["cmdline", "status"])
    at_work = [one.info for one in found if one.info["status"] != psutil.STATUS_ZOMBIE]
    return any(" ".join(info["cmdline"] or ()) == command for info in at_work)


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


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if "PREFECT_API_URL" not in key}
    paths = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "flows.benchmark", "--profile-dir", str(folder), *arguments],
        cwd=folder,  # where no settings of the user's are
        env={**clean, **paths, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_each_stage_of_a_data_set_comes_after_those_it_needs() -> None:
    assert pipeline.plan(GRAPH, "a") == ["prepare@a", "evaluate@a", "tuned_student@a"]
    assert pipeline.plan(GRAPH, "b") == ["prepare@b", "student@b", "evaluate@b"]


def test_the_code_that_all_data_sets_share_is_in_no_plan() -> None:
    graph = {**GRAPH, "code": frozenset[str](), "prepare@a": frozenset({"code"})}
    assert pipeline.plan(graph, "a") == pipeline.plan(GRAPH, "a")


def test_the_ends_of_a_plan_are_what_no_other_stage_of_it_needs() -> None:
    assert pipeline.ends(GRAPH, pipeline.plan(GRAPH, "a")) == ["evaluate@a", "tuned_student@a"]
    assert pipeline.ends(GRAPH, []) == []


def test_all_data_sets_are_meant_if_none_is_named_and_each_only_once() -> None:
    assert pipeline.choose(GRAPH) == ["a", "b"]
    assert pipeline.choose(GRAPH, ["b", "b"]) == ["b"]


def test_an_unknown_data_set_is_refused_with_a_guess() -> None:
    graph = {"evaluate@greek": frozenset[str](), "evaluate@arrows": frozenset[str]()}
    with pytest.raises(UnknownName, match="did you mean 'greek'"):
        pipeline.choose(graph, ["greec"])


def test_dvc_says_how_a_stage_came_to_be_up_to_date() -> None:
    output = [
        "Running stage 'prepare@a':",
        "Stage 'teacher@a' is cached - skipping run, checking out outputs",
        "Stage 'student@a' didn't change, skipping",
    ]
    stages = ["prepare@a", "teacher@a", "student@a"]
    assert list(pipeline.how(stages, output).values()) == [
        "computed",
        "from the cache",
        "up to date",
    ]


def test_a_stage_that_was_killed_or_told_to_end_was_cut_off() -> None:
    failed = "ERROR: failed to reproduce 'a': failed to run: python3 x, exited with "
    for status in ("-9", "75", "143"):
        assert pipeline.was_cut_off([failed + status])
    for status in ("2", "1", "755"):
        assert not pipeline.was_cut_off([failed + status])


def test_a_flood_of_lines_is_cut_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    ended = processes.run(["seq", "500"], tmp_path, said.append)
    assert ended.status == 0
    assert len(ended.output) == 500
    assert said[:60] == [str(number) for number in range(1, 61)]
    assert said[60:] == ["(440 lines were left out)"]


def test_a_command_and_all_that_it_started_end_with_the_block(tmp_path: Path) -> None:
    script = "sleep 71.25 & echo started; sleep 71.25"

    def say(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(["bash", "-c", script], tmp_path, say)
    wait_until(lambda: not _works("sleep 71.25"), 10)


def test_the_reason_of_a_failure_is_the_first_error_that_was_named(tmp_path: Path) -> None:
    script = "echo working; echo error: no room; echo ERROR: failed to reproduce; exit 3"
    ended = processes.run(["bash", "-c", script], tmp_path, lambda _: None)
    assert (ended.status, ended.reason) == (3, "no room")


def test_what_has_changed_is_said_by_data_set() -> None:
    status = {
        "student@a": [{"changed deps": {"params.yaml": {"student.lr": "modified"}}}],
        "evaluate@a": [
            {"changed deps": {"pd_core/training/loop/fit.py": "modified"}},
            "changed command",
        ],
        "report": [{"changed deps": {"data/evaluate": "modified"}}],
    }
    said = {"a": "student.lr modified, pd_core/training/loop/fit.py modified, changed command"}
    assert refresh.changed(status, ["a", "b"]) == said
    many = {f"stage{number}@b": [{"changed deps": {str(number): "new"}}] for number in range(7)}
    assert refresh.changed(many, ["a", "b"])["b"].endswith("4 new and 2 more")


def test_the_graph_is_dvcs_own(tmp_path: Path) -> None:
    _toy_project(tmp_path)
    graph = pipeline.read_graph(tmp_path)
    assert set(graph) == {
        *(
            f"{stage}@{name}"
            for stage in ("prepare", "student", "evaluate")
            for name in ("embedded_greek", "embedded_arrows")
        ),
        "report",
    }
    assert graph["student@embedded_greek"] == {"prepare@embedded_greek"}
    assert graph["report"] == {"evaluate@embedded_greek", "evaluate@embedded_arrows"}


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no 'dvc\.yaml'"):
        pipeline.read_graph(tmp_path)


def test_a_pipeline_that_dvc_refuses_is_refused_in_one_line(tmp_path: Path) -> None:
    _toy_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, dep: [y]}}")
    with pytest.raises(PdError, match="DVC refuses") as caught:
        pipeline.read_graph(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_set_but_does_not_answer_is_said_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        assert benchmark.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: no Prefect server answers at '{NOWHERE}'")
    assert said.count("\n") == 1


def test_no_server_need_be_set() -> None:
    check_server(None)


def test_the_server_of_our_settings_goes_before_prefects_own(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PD_PREFECT_API_URL={NOWHERE}\n")
    done = _run(tmp_path, PREFECT_API_URL="http://127.0.0.1:10/api")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no Prefect server answers at '{NOWHERE}'")


def test_settings_that_cannot_be_read_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PD_DEVICE=\xff\xfe")
    done = _run(tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: '.env' cannot be read (it is not UTF-8); mend or remove it\n",
    )


def test_deployments_point_at_a_flow_and_all_its_parameters() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    names = {"gpu", "quickstart", "paper", "gate", "nightly", "hourly"}
    assert {one["name"] for one in content["deployments"]} == names
    for deployment in content["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        known = inspect.signature(getattr(module, name).fn).parameters
        asked = {one for one in known if known[one].default is inspect.Parameter.empty}
        assert set(deployment["parameters"]) | asked == set(known)


@pytest.mark.slow
def test_without_a_server_the_flow_gives_what_dvc_repro_gives(tmp_path: Path) -> None:
    by_flow, by_hand = tmp_path / "flow", tmp_path / "hand"
    for folder in (by_flow, by_hand):
        folder.mkdir()
        _toy_project(folder)
    done = _run(by_flow)
    assert done.returncode == 0, done.stderr
    assert "Running stage 'student@embedded_arrows'" in done.stdout + done.stderr
    assert dvc(by_hand, "repro", "-q").returncode == 0
    assert (by_flow / "report.txt").read_bytes() == (by_hand / "report.txt").read_bytes()
    locks = [yaml.safe_load((folder / "dvc.lock").read_text()) for folder in (by_flow, by_hand)]
    assert locks[0] == locks[1]


@pytest.mark.slow
def test_a_stage_that_fails_stops_the_flow_and_is_named(tmp_path: Path) -> None:
    _toy_project(tmp_path, prepare="echo no data at all && exit 3")
    done = _run(tmp_path, "embedded_arrows")
    assert done.returncode == 2
    assert "no data at all" in done.stdout + done.stderr
    assert "\nerror: embedded_arrows: 'prepare@embedded_arrows' failed with status" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "data" / "evaluate").exists()
