"""Every stage is one run, whatever starts when, and tracking costs no result."""

import json
import logging
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import dvc

from pd_core.core.errors import BadParams, Interrupted, PdError
from pd_core.mlops import tracking
from pd_core.mlops.tracking import recorder
from pd_core.pipeline import provenance

ROOT = Path(__file__).parents[2]
STAGES = "tags.level = 'stage'"
NOWHERE = "http://127.0.0.1:9"  # the discard port; nothing listens there


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty_database, tmp_path / tracking.DATABASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _stage(store: str | None, **changes: Any) -> Any:
    usual: dict[str, Any] = {
        "profile": "quickstart",
        "dataset": "greek",
        "stage": "teacher",
        "params": {"lr": 0.1},
        "deps": [],
        "outs": [],
        "seed": 1,
        "protocol": "base_to_novel",
    }
    return tracking.stage_run(store, tracking.StageInfo(**{**usual, **changes}))


def _runs(store: str, experiment: str = "promptkd-quickstart") -> list[Any]:
    client = tracking.client(store)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], STAGES)) if found else []


def test_hashes_are_those_that_dvc_writes_into_its_lock_file(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_bytes(b"print(1)\r\n")
    nested = tmp_path / "in" / "deep"
    nested.mkdir(parents=True)
    (tmp_path / "in" / "ä b.txt").write_text("umlaut")
    (nested / "x.bin").write_bytes(bytes(range(256)))
    (tmp_path / "in" / "Z.txt").write_text("sorts before lower case")
    (tmp_path / "in" / "empty").write_bytes(b"")
    stage = {"cmd": "cp -r in out", "deps": ["code.py", "in"], "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": stage}}))
    for command in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        assert dvc(tmp_path, *command).returncode == 0
    locked = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]["copy"]
    expected = {entry["path"]: entry["md5"] for entry in locked["deps"] + locked["outs"]}
    assert {path: provenance.content_hash(tmp_path / path) for path in expected} == expected


def test_what_dvc_puts_beside_an_output_does_not_change_the_folders_hash(tmp_path: Path) -> None:
    """Else what a stage wrote would not be known again as what the next one read."""
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    written = provenance.content_hash(tmp_path)
    (tmp_path / ".gitignore").write_text("/student.safetensors\n")
    assert provenance.content_hash(tmp_path) == written


def test_what_is_not_there_has_the_hash_absent(tmp_path: Path) -> None:
    assert provenance.content_hash(tmp_path / "nothing") == "absent"


def test_what_a_killed_process_left_of_a_database_does_no_harm(empty_database: Path) -> None:
    # conftest.py creates it beside half a database
    assert _runs(tracking.open_store(empty_database.parent)) == []
    assert not empty_database.with_name("mlflow.db.new").exists()


def test_a_stage_is_one_run_with_parameters_epochs_files_and_provenance(project: Path) -> None:
    (project / "losses.py").write_text("code")
    history: list[dict[str, Any]] = [{"loss": 2.0, "note": "text"}, {"loss": 0.5}]
    store = tracking.open_store(project)
    params = {"lr": 0.1, "prompts": {"depth": 3}}
    with _stage(
        store,
        params=params,
        deps=[Path("losses.py"), project / "params.yaml"],
        outs=[Path("data/teacher/greek")],
        project=project,
        seed=7,
    ) as run:
        out = project / "data" / "teacher" / "greek"
        out.mkdir(parents=True)
        (out / "history.json").write_text(json.dumps(history))
        before = provenance.content_hash(out)
        for epoch, row in enumerate(history, start=1):
            run.epoch(epoch, row)
        run.log_metrics({"student": {"hm": 71.5}})
        run.log_file(out / "history.json")

    (stored,) = _runs(store)
    assert stored.info.run_id == run.run_id
    assert stored.info.run_name == "teacher@greek"
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"lr": "0.1", "prompts.depth": "3"}
    tags = stored.data.tags
    assert tags["dep:losses.py"] == provenance.content_hash(project / "losses.py")
    assert tags["out:data/teacher/greek"] == before == provenance.content_hash(out)
    assert tags["dep:params.yaml"] == "absent"  # named from the project, though given in full
    assert tags["params_md5"] == provenance.params_hash(params)
    known = {"profile": "quickstart", "dataset": "greek", "stage": "teacher", "seed": "7"}
    assert known.items() <= tags.items()
    assert tags["protocol"] == "base_to_novel"
    assert stored.data.metrics["student/hm"] == 71.5
    assert stored.data.metrics["seconds"] > 0
    client = tracking.client(store)
    points = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (2, 0.5)]
    assert Path(stored.info.artifact_uri).is_relative_to(project / "mlruns")
    copy = client.download_artifacts(run.run_id, "history.json", str(project))
    assert json.loads(Path(copy).read_text()) == history


def test_more_numbers_than_one_call_takes_all_arrive(project: Path) -> None:
    store = tracking.open_store(project)
    params = {f"key{number}": number for number in range(130)}
    with _stage(store, params=params) as run:
        for epoch in range(1200):
            run.epoch(epoch, {"loss": 1 / (1 + epoch)})
    (stored,) = _runs(store)
    assert len(stored.data.params) == 130
    assert len(tracking.client(store).get_metric_history(run.run_id, "loss")) == 1200


def test_the_commit_and_uncommitted_code_are_recorded_not_what_stages_write(project: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=project, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    written = ("dvc.lock", "data/evaluate/greek/.gitignore", "reports/quickstart/summary.md")
    for name in ("code.py", *written):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("old")
    git("add", "code.py", *written)
    git("commit", "-q", "-m", "m")
    store = tracking.open_store(project)
    for name in written:
        (project / name).write_text("new")
    with _stage(store, dataset="clean", project=project):
        pass
    (project / "code.py").write_text("new")
    with _stage(store, dataset="dirty", project=project):
        pass
    tags = {run.data.tags["dataset"]: run.data.tags for run in _runs(store)}
    assert tags["clean"]["git_commit"] == git("rev-parse", "HEAD")
    assert (tags["clean"]["git_dirty"], tags["dirty"]["git_dirty"]) == ("false", "true")


def test_a_stage_that_raises_is_a_failed_run_and_still_raises(project: Path) -> None:
    store = tracking.open_store(project)
    with pytest.raises(BadParams, match="more shots"), _stage(store):
        raise BadParams("more shots than pictures")
    (stored,) = _runs(store)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["error"] == "BadParams: more shots than pictures"


def test_each_profile_has_its_own_experiment(project: Path) -> None:
    store = tracking.open_store(project)
    for profile in ("quickstart", "paper"):
        with _stage(store, profile=profile):
            pass
    assert len(_runs(store, "promptkd-quickstart")) == len(_runs(store, "promptkd-paper")) == 1


def test_a_store_that_fails_after_the_work_costs_a_warning_not_the_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING), _stage(NOWHERE) as run:
        result = 42
    assert result == 42
    assert run.run_id is None
    assert "'teacher@greek' is not recorded" in caplog.text


@pytest.mark.parametrize(("step", "reaches_the_stage"), [("_make_run", True), ("_end", False)])
def test_sigterm_while_the_run_is_made_ends_the_stage_and_once_the_work_is_done_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, reaches_the_stage: bool
) -> None:
    def told(*_: object) -> None:
        raise Interrupted("told to end")

    worked = False
    monkeypatch.setattr(recorder._Recorder, step, told)
    expected = pytest.raises(Interrupted) if reaches_the_stage else nullcontext()
    with expected, _stage(tracking.open_store(project)):
        worked = True
    assert worked is not reaches_the_stage


def test_a_server_that_does_not_answer_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(PdError, match="no MLflow server answers at 'http://127") as caught:
        tracking.open_store(tmp_path, NOWHERE)
    assert "\n" not in str(caught.value)


def test_no_password_is_shown(tmp_path: Path) -> None:
    with pytest.raises(PdError) as caught:
        tracking.open_store(tmp_path, "http://user:secret@127.0.0.1:9/")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["ftp://server", "mlflow.db", "file:///tmp/mlruns"])
def test_an_address_of_an_unknown_kind_is_refused_with_the_valid_ones(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(BadParams, match="valid: http://host:port"):
        tracking.open_store(tmp_path, address)


def test_a_database_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PdError, match="cannot create the tracking database"):
        tracking.open_store(tmp_path, f"sqlite:///{tmp_path}/file/mlflow.db")


def test_without_a_store_nothing_is_recorded(project: Path) -> None:
    with _stage(None) as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None
    assert _runs(tracking.open_store(project)) == []


def test_mlflow_is_not_imported_before_it_is_needed(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pd_core.mlops import tracking;"
        "tracking.open_store(Path()); sys.exit('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={**_environment(), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0


def _environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACK")}
