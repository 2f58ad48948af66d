"""The flow runs DVC's stages in order, for one data set or all, with a server or without."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import benchmark
from flows.addresses import check_server
from pd_core.errors import MissingFile, PdError, UnknownName

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9/api"  # the discard port; nothing listens there

GRAPH = {
    "report": frozenset({"evaluate@a", "evaluate@b"}),
    "evaluate@b": frozenset({"student@b", "prepare@b"}),
    "student@b": frozenset({"prepare@b"}),
    "prepare@b": frozenset[str](),
    "evaluate@a": frozenset({"prepare@a"}),
    "prepare@a": frozenset[str](),
}


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
            "foreach": {"greek": 1, "arrows": 2},
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
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)


def _run(
    folder: Path, *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if "PREFECT_API_URL" not in key}
    paths = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "flows.benchmark", "--profile-dir", str(folder), *arguments],
        cwd=cwd,
        env={**clean, **paths, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_each_stage_comes_after_those_it_needs_and_the_report_last() -> None:
    order = benchmark.plan(GRAPH)
    assert sorted(order) == sorted(GRAPH)
    assert order[-1] == "report"
    for stage, needed in GRAPH.items():
        assert all(order.index(other) < order.index(stage) for other in needed)


def test_one_data_set_is_finished_before_the_next_begins() -> None:
    order = [stage.partition("@")[2] for stage in benchmark.plan(GRAPH)[:-1]]
    assert order == sorted(order, key=order.index)


def test_a_chosen_data_set_runs_its_own_stages_only() -> None:
    assert benchmark.plan(GRAPH, ["b"]) == ["prepare@b", "student@b", "evaluate@b"]


def test_an_unknown_data_set_is_refused_with_a_guess() -> None:
    graph = {"evaluate@greek": frozenset[str](), "evaluate@arrows": frozenset[str]()}
    with pytest.raises(UnknownName, match="did you mean 'greek'"):
        benchmark.plan(graph, ["greec"])


def test_the_graph_is_dvcs_own(tmp_path: Path) -> None:
    _toy_project(tmp_path)
    graph = benchmark.read_graph(tmp_path)
    assert set(graph) == {
        *(
            f"{stage}@{name}"
            for stage in ("prepare", "student", "evaluate")
            for name in ("greek", "arrows")
        ),
        "report",
    }
    assert graph["student@greek"] == {"prepare@greek"}
    assert graph["report"] == {"evaluate@greek", "evaluate@arrows"}


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no 'dvc\.yaml'"):
        benchmark.read_graph(tmp_path)


def test_a_pipeline_that_dvc_refuses_is_refused_in_one_line(tmp_path: Path) -> None:
    _toy_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, dep: [y]}}")
    with pytest.raises(PdError, match="DVC refuses") as caught:
        benchmark.read_graph(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_set_but_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    done = _run(tmp_path, PREFECT_API_URL=NOWHERE)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no Prefect server answers at '{NOWHERE}'")
    assert done.stderr.count("\n") == 1


def test_no_server_need_be_set() -> None:
    check_server(None)


def test_the_server_of_our_settings_goes_before_prefects_own(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PD_PREFECT_API_URL={NOWHERE}\n")
    done = _run(tmp_path, PREFECT_API_URL="http://127.0.0.1:10/api", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no Prefect server answers at '{NOWHERE}'")


def test_settings_that_cannot_be_read_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PD_DEVICE=\xff\xfe")
    done = _run(tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: '.env' cannot be read (it is not UTF-8); mend or remove it\n",
    )


def test_deployments_point_at_a_flow_and_all_its_parameters() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert {one["name"] for one in content["deployments"]} == {"quickstart", "paper", "hourly"}
    for deployment in content["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        known = set(inspect.signature(getattr(module, name).fn).parameters)
        assert set(deployment["parameters"]) == known


@pytest.mark.slow
def test_without_a_server_the_flow_gives_what_dvc_repro_gives(tmp_path: Path) -> None:
    by_flow, by_hand = tmp_path / "flow", tmp_path / "hand"
    for folder in (by_flow, by_hand):
        folder.mkdir()
        _toy_project(folder)
    done = _run(by_flow)
    assert done.returncode == 0, done.stderr
    assert "Running stage 'student@arrows'" in done.stdout + done.stderr
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=by_hand, check=True)
    assert (by_flow / "report.txt").read_bytes() == (by_hand / "report.txt").read_bytes()
    locks = [yaml.safe_load((folder / "dvc.lock").read_text()) for folder in (by_flow, by_hand)]
    assert locks[0] == locks[1]


@pytest.mark.slow
def test_a_stage_that_fails_stops_the_flow_and_is_named(tmp_path: Path) -> None:
    _toy_project(tmp_path, prepare="echo no data at all && exit 3")
    done = _run(tmp_path, "arrows")
    assert done.returncode == 2
    assert "no data at all" in done.stdout + done.stderr
    assert "\nerror: stage 'prepare@arrows' failed with status" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "data" / "evaluate").exists()
