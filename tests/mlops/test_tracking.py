"""Every stage is one run, whatever starts when, and tracking costs no result."""

import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import git_repository
import pytest
import yaml
from command import dvc
from tracked import COMMIT, ran, runs, stage, store

from pd_core.core.errors import BadParams, Interrupted, PdError
from pd_core.mlops import tracking
from pd_core.mlops.tracking import lineage_of, nesting, recorder
from pd_core.pipeline import provenance

__all__ = ["store"]  # a fixture

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port; nothing listens there


def test_hashes_are_those_that_dvc_writes_into_its_lock_file(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_bytes(b"print(1)\r\n")
    nested = tmp_path / "in" / "deep"
    nested.mkdir(parents=True)
    (tmp_path / "in" / "ä b.txt").write_text("umlaut")
    (nested / "x.bin").write_bytes(bytes(range(256)))
    (tmp_path / "in" / "Z.txt").write_text("sorts before lower case")
    (tmp_path / "in" / "empty").write_bytes(b"")
    copy = {"cmd": "cp -r in out", "deps": ["code.py", "in"], "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": copy}}))
    for command in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        assert dvc(tmp_path, *command).returncode == 0
    locked = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]["copy"]
    expected = {entry["path"]: entry["md5"] for entry in locked["deps"] + locked["outs"]}
    assert {path: provenance.content_hash(tmp_path / path) for path in expected} == expected
    # DVC puts it beside an output after the stage; the next stage must read the same hash.
    (tmp_path / "out" / ".gitignore").write_text("/x\n")
    assert provenance.content_hash(tmp_path / "out") == expected["out"]


def test_what_a_killed_process_left_of_a_database_does_no_harm(empty_database: Path) -> None:
    # conftest.py creates it beside half a database
    assert runs(tracking.open_store(empty_database.parent)) == []
    assert not empty_database.with_name("mlflow.db.new").exists()


def test_an_experiment_that_was_deleted_in_the_ui_is_a_warning_with_mlflows_remedy(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = ran(store)
    client = tracking.client(store)
    experiment = client.get_run(run).info.experiment_id
    client.delete_experiment(experiment)
    with stage(store) as failed:
        pass
    assert failed.run_id is None
    assert f"mlflow experiments restore --experiment-id {experiment}" in caplog.text
    client.restore_experiment(experiment)
    assert ran(store) != run


def test_a_stage_is_one_run_with_parameters_epochs_files_and_lineage(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "losses.py").write_text("code")
    history: list[dict[str, Any]] = [{"loss": 2.0, "note": "text"}, {"loss": 0.5}]
    params = {"lr": 0.1, "prompts": {"depth": 3}}
    out = tmp_path / "data" / "teacher" / "greek"
    with stage(
        store,
        params=params,
        deps=[Path("losses.py"), tmp_path / "params.yaml"],
        outs=[Path("data/teacher/greek")],
        project=tmp_path,
        seed=7,
    ) as run:
        out.mkdir(parents=True)
        (out / "history.json").write_text(json.dumps(history))
        for epoch, row in enumerate(history, start=1):
            run.epoch(epoch, row)
        run.log_metrics({"student": {"hm": 71.5}})
        run.log_file(out / "history.json")

    (stored,) = runs(store)
    assert (stored.info.run_id, stored.info.run_name) == (run.run_id, "teacher@greek")
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"lr": "0.1", "prompts.depth": "3"}
    client = tracking.client(store)
    lineage = lineage_of(client, stored)
    assert lineage.deps == {
        "losses.py": provenance.content_hash(tmp_path / "losses.py"),
        "params.yaml": "absent",  # named from the project, though given in full
    }
    assert lineage.outs == {"data/teacher/greek": provenance.content_hash(out)}
    assert lineage.params_md5 == provenance.params_hash(params)
    ours = {key: value for key, value in stored.data.tags.items() if not key.startswith("mlflow.")}
    assert ours == {
        "level": "stage", "stage": "teacher", "dataset": "greek", "seed": "7",
        "protocol": "base_to_novel", "process": nesting.this_process(),
        "lineage": lineage.digest(),
    }  # fmt: skip
    source = [stored.data.tags[f"mlflow.source.{part}"] for part in ("name", "type")]
    assert source == ["promptkd teacher", "LOCAL"]
    assert stored.info.user_id == stored.data.tags["mlflow.user"] == nesting.user_name()
    assert stored.data.metrics["student/hm"] == 71.5
    assert stored.data.metrics["seconds"] > 0
    points = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (2, 0.5)]
    assert Path(stored.info.artifact_uri).is_relative_to(tmp_path / "mlruns")
    copy = client.download_artifacts(run.run_id, "history.json", str(tmp_path))
    assert json.loads(Path(copy).read_text()) == history


def test_more_numbers_than_one_call_takes_all_arrive(store: str) -> None:
    with stage(store, params={f"key{number}": number for number in range(130)}) as run:
        for epoch in range(1200):
            run.epoch(epoch, {"loss": 1 / (1 + epoch)})
    (stored,) = runs(store)
    assert len(stored.data.params) == 130
    assert len(tracking.client(store).get_metric_history(run.run_id, "loss")) == 1200


def test_the_commit_and_uncommitted_code_are_recorded_not_what_stages_write(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / ".gitignore").write_text("/mlflow.db*\n/mlruns/\n")
    written = ("dvc.lock", "data/evaluate/greek/.gitignore", "reports/quickstart/summary.md")
    for name in ("code.py", *written):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git_repository.git(tmp_path, "init", "--quiet")
    git_repository.commit(tmp_path)
    for name in (*written, "code.py"):
        (tmp_path / name).write_text("new")
        with stage(store, project=tmp_path):
            pass
    *clean, dirty = [run.data.tags for run in runs(store)]
    assert dirty[COMMIT] == provenance.commit_of(tmp_path, "HEAD")
    assert {tags["mlflow.source.git.dirty"] for tags in clean} == {"false"}
    assert dirty["mlflow.source.git.dirty"] == "true"


def test_a_stage_that_raises_is_a_failed_run_and_still_raises(store: str) -> None:
    with pytest.raises(BadParams, match="more shots"), stage(store):
        raise BadParams("more shots than images")
    (stored,) = runs(store)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["error"] == "BadParams: more shots than images"


def test_each_profile_has_its_own_experiment(store: str) -> None:
    for profile in ("quickstart", "paper"):
        with stage(store, profile=profile):
            pass
        assert len(runs(store, f"promptkd-{profile}")) == 1


def test_a_store_that_fails_costs_a_warning_not_the_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING), stage(NOWHERE) as run:
        result = 42
    assert (result, run.run_id) == (42, None)
    assert "'teacher@greek' is not recorded" in caplog.text


@pytest.mark.parametrize(("step", "reaches_the_stage"), [("_create_run", True), ("_end", False)])
def test_sigterm_while_the_run_is_created_ends_the_stage_and_once_the_work_is_done_does_not(
    store: str, monkeypatch: pytest.MonkeyPatch, step: str, *, reaches_the_stage: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted("told to end")

    worked = False
    monkeypatch.setattr(recorder._Recorder, step, interrupt)
    expected = pytest.raises(Interrupted) if reaches_the_stage else nullcontext()
    with expected, stage(store):
        worked = True
    assert worked is not reaches_the_stage


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("http://user:hidden@127.0.0.1:9/", PdError, "no MLflow server answers at"),
        ("ftp://server", BadParams, "valid: http://host:port"),
        ("mlflow.db", BadParams, "valid: http://host:port"),
        ("file:///tmp/mlruns", BadParams, "valid: http://host:port"),
        ("sqlite:///{folder}/file/mlflow.db", PdError, "cannot create"),
    ],
)
def test_a_bad_address_is_refused_before_the_work_in_one_line_without_its_password(
    address: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(error, match=words) as caught:
        tracking.open_store(tmp_path, address.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_without_a_store_nothing_is_recorded(store: str) -> None:
    with stage(None) as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None
    assert runs(store) == []


def test_mlflow_is_not_imported_before_it_is_needed(store: str) -> None:
    code = (
        "import sys; from pathlib import Path; from pd_core.mlops import tracking;"
        f"assert tracking.open_store(Path()) == {store!r}; sys.exit('mlflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
