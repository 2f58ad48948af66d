"""`promptkd registry list`, `show`, `promote`, `rollback` and `history`."""

import json
from pathlib import Path
from typing import Any

import pytest
import registered
import tiny
from command import promptkd
from promoting import NAME, promote
from registered import champion, good, publish, tried_once
from registry_project import project, store
from typer.testing import CliRunner

from pd_core.cli import doctor_servers, registry
from pd_core.cli.doctor import Status
from pd_core.core.errors import BadParams, PdError, UnknownName
from pd_core.mlops import tracking

__all__ = ["good", "tried_once", "project", "store"]  # a fixture


# SQLAlchemy's, about MLflow's use of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.usefixtures("tried_once"),
]


def run(*arguments: str) -> str:
    """Run a verb in this process, and return what it says."""
    result = CliRunner().invoke(registry.app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def listed(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))
    return found


@pytest.mark.usefixtures("store")
def test_an_empty_registry_says_how_to_fill_it() -> None:
    assert "no student is registered; run `promptkd registry register`" in run("list")
    assert listed("list") == []


def test_models_and_versions_are_listed_with_their_aliases(store: str, good: Path) -> None:
    for _ in range(2):
        publish(store, good, **{"student/hm": "69.70"})
    promote(store, 2)
    assert [cell.strip() for cell in run("list").splitlines()[3].split("│")] == [
        "", NAME, "2", "2", "", "",
    ]  # fmt: skip
    text = run("list", "tiny")
    assert all(word in text for word in ("champion", "distilled", "69.70", "promoted"))
    assert [(entry["number"], entry["aliases"]) for entry in listed("list", NAME)] == [
        (1, []), (2, ["champion"]),
    ]  # fmt: skip


def test_a_version_is_shown_with_its_tags(store: str, good: Path) -> None:
    publish(store, good, seed="1")
    text = run("show", "tiny")
    assert f"{NAME}/1" in text
    assert "seed" in text
    found = json.loads(run("show", "tiny/1", "--json"))
    assert found["tags"]["seed"] == "1"
    assert found["uri"] == f"models:/{NAME}/1"
    with pytest.raises(UnknownName, match="unknown version of 'promptkd-tiny' '7'"):
        run("show", "tiny/7")
    with pytest.raises(UnknownName, match="unknown model 'promptkd-tinny'; did you mean"):
        run("show", "tinny")


def test_history_is_told_the_newest_first(store: str, good: Path) -> None:
    publish(store, good)
    publish(store, good)
    promote(store, 1)
    promote(store, 2)
    assert "version 1 of 'promptkd-tiny' would be champion again" in run(
        "rollback", "tiny", "--dry-run"
    )
    assert champion(store) == 2
    assert "is champion again, after version 2" in run("rollback", "tiny")
    assert champion(store) == 1
    entries = listed("history", "tiny")
    assert [(entry["action"], entry["version"], entry["champion"]) for entry in entries] == [
        ("rolled back", 1, 2), ("promoted", 2, 1), ("promoted", 1, None),
    ]  # fmt: skip
    assert "@" in entries[0]["by"]
    assert "rolled back" in run("history", "tiny")


def test_a_champion_that_was_set_by_hand_is_noted_until_it_has_passed_the_gate(
    project: Path, store: str, good: Path
) -> None:
    publish(store, good)
    second = publish(store, good)
    promote(store, 1)
    assert doctor_servers.mlflow(project, None).status is Status.OK
    tracking.client(store).set_registered_model_alias(NAME, "champion", "2")
    by_hand, promoted = listed("history", "tiny")
    assert (by_hand["action"], by_hand["version"], by_hand["champion"]) == ("set by hand", 2, 1)
    assert promoted["action"] == "promoted"
    assert "set by hand" in run("history", "tiny")
    doctor = doctor_servers.mlflow(project, None)
    assert doctor.status is Status.WARNING
    assert f"past the gate: {NAME}/2" in doctor.message
    promote(store, 1)
    assert [entry["action"] for entry in listed("history", "tiny")] == ["promoted", "promoted"]
    assert second.number == 2


def test_a_champion_that_was_set_by_hand_is_put_through_the_gate(
    project: Path, store: str, good: Path, tmp_path: Path
) -> None:
    bad = registered.model(tmp_path / "bad", registered.worse(tiny.NAMES[0], tiny.NAMES[1]))
    for model in (good, bad, good):
        publish(store, model, registered.lineage(project))
    run("promote", "tiny/1")
    tracking.client(store).set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(PdError, match="version 2 .* is refused, .*; it was set by hand and stays"):
        run("promote", "tiny/2")
    assert champion(store) == 2
    assert doctor_servers.mlflow(project, None).status is Status.WARNING
    assert "version 1 of 'promptkd-tiny' is champion again" in run("rollback", "tiny")

    tracking.client(store).set_registered_model_alias(NAME, "champion", "3")
    assert "version 3 of 'promptkd-tiny' is champion, after 1" in run("promote", "tiny/3")
    assert champion(store) == 3
    assert doctor_servers.mlflow(project, None).status is Status.OK
    assert "is the champion already" in run("promote", "tiny/3")
    actions = [(entry["action"], entry["version"]) for entry in listed("history", "tiny")]
    assert actions == [("promoted", 3), ("rolled back", 1), ("refused", 2), ("promoted", 1)]
    assert "version 1 of 'promptkd-tiny' is champion again" in run("rollback", "tiny")


@pytest.mark.usefixtures("store")
def test_which_model_has_to_be_said_unless_there_is_one() -> None:
    with pytest.raises(BadParams, match="none is registered"):
        run("promote")


def test_a_refused_promotion_names_all_reasons_and_ends_with_status_2(
    project: Path, store: str, good: Path
) -> None:
    publish(store, good, registered.dirty(project), files="0.dir")
    done = promptkd(project, "registry", "promote")
    assert done.returncode == 2
    failing = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failing == ["intact", "lineage", "loads", "answers", "latency", "accuracy"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: version 1 of 'promptkd-tiny' is refused, 6 of 7 checks failed; intact: its files"
    )
    assert champion(store) is None


def test_a_decision_is_told_as_json_with_its_numbers_a_refusal_as_well(
    project: Path, store: str, good: Path
) -> None:
    publish(store, good, registered.dirty(project))
    done = promptkd(project, "registry", "promote", "tiny", "--json", "--dry-run")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert f"error: {told['conclusion']}" in done.stderr.splitlines()
    assert (told["name"], told["version"], told["uri"]) == (NAME, 1, f"models:/{NAME}/1")
    assert (told["accepted"], told["dry_run"], told["champion_before"]) == (False, True, None)
    assert [reason.partition(":")[0] for reason in told["reasons"]] == ["lineage"]
    checks = {check["name"]: check for check in told["checks"]}
    assert [name for name, check in checks.items() if not check["passed"]] == ["lineage"]
    assert checks["lineage"]["measure"] is None
    assert (checks["accuracy"]["measure"]["value"], checks["accuracy"]["measure"]["wanted"]) == (
        100.0,
        "above",
    )
    assert 0 < checks["size"]["measure"]["value"] < checks["size"]["measure"]["limit"]
    assert 0 < checks["latency"]["measure"]["value"] < checks["latency"]["measure"]["limit"]


def test_a_good_version_becomes_champion_and_stays_it(
    project: Path, store: str, good: Path
) -> None:
    publish(store, good, registered.lineage(project))
    done = promptkd(project, "registry", "promote", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "version 1 of 'promptkd-tiny' is champion, after none"
    assert champion(store) == 1
    assert "version 1 of 'promptkd-tiny' is the champion already" in run("promote", "tiny")
    told = json.loads(run("promote", "tiny", "--json"))
    assert (told["accepted"], told["checks"], told["champion_before"]) == (True, [], 1)


def test_a_data_set_that_params_yaml_does_not_have_is_refused(
    project: Path, store: str, good: Path
) -> None:
    publish(store, good, registered.lineage(project))
    registered.git(project, "checkout", "--quiet", "HEAD~1", "--", "params.yaml")
    with pytest.raises(PdError, match="unknown data set 'tiny'"):
        run("promote", "tiny")
