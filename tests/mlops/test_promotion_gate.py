"""A version becomes champion if its files, its descent, its answers and its accuracy are right."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import registered
import tiny
from promoting import NAME
from registered import (
    LEVELS,
    champion,
    good,
    own_project,
    project,
    publish,
    store,
    stored,
    tried_in_a_process,
    tried_once,
    worse,
)
from tracked import load_model
from waiting import wait_until

from pd_core.core.errors import MissingFile, PdError
from pd_core.core.options import Metric
from pd_core.evaluation.significance import Paired
from pd_core.mlops import registry
from pd_core.mlops.registry import Version, gate, promotion
from pd_core.mlops.registry.gate import Exam
from pd_core.mlops.registry.promotion import Decision

__all__ = [
    "good",
    "own_project",
    "project",
    "store",
    "tried_in_a_process",
    "tried_once",
]  # fixtures

# SQLAlchemy's, about MLflow's use of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.usefixtures("tried_once"),
]


@pytest.fixture
def exam(project: Path) -> Exam:
    return Exam(
        project=project,
        profile="quickstart",
        prepared=project / "data" / "prepare" / "tiny",
        data_root=project,
        model="embedded-student",
        weights=None,
        metric=Metric.ACCURACY,
        margin=0.03,
        quantized_margin=0.02,
        confidence=0.95,
        latency_ms=5000,
        megabytes=5,
        warm_ups=1,
        timed=3,
        seconds=60,
    )


def promote(store: str, exam: Exam, version: Version, **options: Any) -> Decision:
    reference = f"{version.name}/{version.number}"
    examine = partial(gate.examine, store, exam=exam)
    return promotion.promote(store, reference, examine, user="tester@here", **options)


def failed(decision: Decision) -> dict[str, str]:
    return {check.name: check.finding for check in decision.checks if not check.passed}


def findings(store: str) -> Mapping[str, str]:
    return promotion.history(store, NAME)[0].findings


def last(store: str) -> Version:
    return registry.versions(store, NAME)[-1]


@pytest.mark.usefixtures("tried_in_a_process")
def test_a_first_champion_has_to_be_better_than_the_zero_shot_student(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    version = publish(store, good, registered.lineage(project))
    decision = promote(store, exam, version)
    assert failed(decision) == {}
    assert champion(store) == 1
    tags = last(store).tags
    assert tags["decision"] == "promoted"
    assert tags["decided_by"] == "tester@here"
    assert tags["decided_at"].endswith("Z")
    assert "100.00% right, the zero-shot student" in findings(store)["accuracy"]
    assert findings(store)["answers"].startswith("pass: 20 images, 5 names")
    assert [check.name for check in decision.checks] == [
        "intact", "size", "lineage", "loads", "answers", "latency", "accuracy",
    ]  # fmt: skip
    assert last(store).aliases == ("champion",)  # and challenger no longer


def test_a_version_that_mlflow_has_loaded_is_promoted_and_restored_all_the_same(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    for _ in range(2):
        version = publish(store, good, registered.lineage(project))
        load_model(store, version.uri)
        assert (stored(store, version) / "registered_model_meta").is_file()
        assert failed(promote(store, exam, version)) == {}
    promotion.rollback(store, NAME, user="tester@here")
    assert champion(store) == 1


def test_a_first_champion_that_is_no_better_is_refused_with_its_reasons(
    store: str, exam: Exam, project: Path, tmp_path: Path
) -> None:
    useless = registered.model(tmp_path / "useless", dict.fromkeys(LEVELS, 500.0))
    version = publish(store, useless, registered.dirty(project))
    decision = promote(store, exam, version)
    assert set(failed(decision)) == {"accuracy", "lineage"}
    assert champion(store) is None
    assert last(store).tags["decision"] == "refused"
    assert findings(store)["lineage"].startswith("fail: code, params.yaml or dvc.yaml had changes")
    assert "it must be better" in findings(store)["accuracy"]
    assert last(store).aliases == ("challenger",)


def test_the_same_model_again_passes_and_a_worse_one_is_refused(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path
) -> None:
    registry.set_alias(store, publish(store, good, registered.lineage(project)), "champion")
    again = promote(store, exam, publish(store, good, registered.lineage(project)))
    assert failed(again) == {}
    assert champion(store) == 2
    bad = registered.model(tmp_path / "bad", worse(tiny.NAMES[0], tiny.NAMES[1]))
    bound = Paired(pictures=20, gained=0, lost=8, both=12).lower_bound(exam.confidence)
    missed = -bound - 1e-6  # by a hair
    strict = exam.model_copy(update={"margin": missed})
    decision = promote(store, strict, publish(store, bad, registered.lineage(project)))
    assert set(failed(decision)) == {"accuracy"}
    assert "60.00% right, the champion, version 2, 100.00%" in failed(decision)["accuracy"]
    assert "(0 gained, 8 lost)" in failed(decision)["accuracy"]
    assert champion(store) == 2


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        (Metric.BALANCED_ACCURACY, "balanced accuracy 60.00%, the champion, version 1, 100.00%"),
        (Metric.MACRO_F1, "macro F1 50.00%, the champion, version 1, 100.00%"),
    ],
)
def test_the_gate_compares_by_the_metric_of_the_parameters(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path, metric: Metric, values: str
) -> None:
    registry.set_alias(store, publish(store, good, registered.lineage(project)), "champion")
    bad = registered.model(tmp_path / "bad", worse(tiny.NAMES[0], tiny.NAMES[1]))
    version = publish(store, bad, registered.lineage(project))
    strict = exam.model_copy(update={"metric": metric, "margin": 0.3})
    finding = failed(promote(store, strict, version))["accuracy"]
    assert finding.startswith(values)
    assert "-30.00 allowed (permutation test, p = " in finding
    lenient = strict.model_copy(update={"margin": 0.6})
    assert failed(promote(store, lenient, version)) == {}


def test_a_quantized_version_is_compared_with_its_original_too(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    lineage = registered.lineage(project)
    registry.set_alias(store, publish(store, good, lineage), "champion")
    version = publish(store, good, lineage, kind="quantized", parent="1")
    notes: list[str] = []
    checks = gate.examine(
        store, version, registry.find(store, "tiny/1"), exam, on_note=notes.append
    )
    assert [check.name for check in checks][-2:] == ["accuracy", "precision"]
    assert all(check.passed for check in checks)
    assert "100.00% right, its original, version 1, 100.00%" in checks[-1].finding
    assert "-2.00 allowed" in checks[-1].finding
    assert sum("version 1," in note for note in notes) == 1  # it is both, and tried once


def test_a_quantized_version_that_is_worse_than_its_original_is_refused(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path
) -> None:
    lineage = registered.lineage(project)
    publish(store, good, lineage)
    bad = registered.model(tmp_path / "bad", worse(tiny.NAMES[0]))
    registry.set_alias(store, publish(store, bad, lineage), "champion")
    version = publish(store, bad, lineage, kind="quantized", parent="1")
    refused = failed(promote(store, exam, version))
    assert set(refused) == {"precision"}  # it is as good as the champion
    assert "80.00% right, its original, version 1, 100.00%" in refused["precision"]
    lenient = exam.model_copy(update={"quantized_margin": 0.5})
    assert failed(promote(store, lenient, version)) == {}


def test_a_quantized_version_without_its_original_is_refused(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    lineage = registered.lineage(project)
    registry.set_alias(store, publish(store, good, lineage), "champion")
    refused = failed(promote(store, exam, publish(store, good, lineage, kind="quantized")))
    assert set(refused) == {"lineage", "precision"}
    assert refused["precision"].startswith("unknown: its original is not in the registry")


def test_a_version_that_cannot_be_loaded_is_refused(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(good, tmp_path / "broken"))
    (broken / registered.SCRIPT.name).write_text("raise RuntimeError('no such model')\n")
    decision = promote(store, exam, publish(store, broken, registered.lineage(project)))
    assert set(failed(decision)) == {"loads", "answers", "latency", "accuracy"}
    assert failed(decision)["loads"].endswith(
        f"Failed to run user code from {registered.SCRIPT.name}. Error: no such model. Review the "
        f"stack trace for more information."
    )
    assert champion(store) is None


@pytest.mark.slow
@pytest.mark.usefixtures("tried_in_a_process")
@pytest.mark.parametrize(
    ("code", "reason", "seconds"),
    [
        ("import os\nos.kill(os.getpid(), 9)\n", "killed by signal 9", 60),
        ("import time\ntime.sleep(100)\n", "more than 3 s", 3),
    ],
)
def test_a_version_that_kills_its_process_or_hangs_is_refused(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path,
    code: str, reason: str, seconds: float,
) -> None:  # fmt: skip
    broken = Path(shutil.copytree(good, tmp_path / "broken"))
    (broken / registered.SCRIPT.name).write_text(code)
    version = publish(store, broken, registered.lineage(project))
    limited = exam.model_copy(update={"seconds": seconds})
    assert reason in failed(promote(store, limited, version))["loads"]


def test_tampered_weights_are_refused_and_not_run(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    version = publish(store, good, registered.lineage(project))
    weights = stored(store, version) / registry.BUNDLE / "model.json"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    findings = failed(promote(store, exam, version))
    assert "its files hash to" in findings["intact"]
    assert "not tried" in findings["loads"]
    assert champion(store) is None

    shutil.rmtree(stored(store, version))
    with pytest.raises(PdError, match="cannot fetch version 1"):
        promote(store, exam, version)
    assert champion(store) is None


def test_a_bundle_that_was_damaged_before_it_was_registered_is_refused(
    store: str, good: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(good, tmp_path / "damaged"))
    (damaged / registry.BUNDLE / "more.py").write_text("")
    check = gate.check_files(store, publish(store, damaged))
    assert not check.passed
    assert "more.py" in check.finding


def test_size_latency_and_unknown_names_are_checked(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(good, tmp_path / "odd"))
    script = odd / registered.SCRIPT.name
    script.write_text(script.read_text().replace('["levels"]', '["levels"] | {"strange": 0.0}'))
    strict = exam.model_copy(update={"latency_ms": 1e-6, "megabytes": 1e-6})
    found = failed(promote(store, strict, publish(store, odd, registered.lineage(project))))
    assert {"size", "latency", "answers"} <= set(found)
    assert "at most 1e-06 MB" in found["size"]
    assert "p95 at most 1e-06 ms" in found["latency"]
    assert found["answers"] == "its names are not those of its model.json, as 'strange'"


def test_what_cannot_be_measured_needs_to_be_accepted(
    store: str, exam: Exam, own_project: Path, good: Path
) -> None:
    """All else is checked all the same."""
    from pd_core.data.loading.prepared import read_split, read_unlabelled, write_prepared

    folder = own_project / "data" / "prepare" / "tiny"
    write_prepared(folder, {**read_split(folder), "test": []}, read_unlabelled(folder))
    registered.write_lock(own_project)
    own = exam.model_copy(update={"project": own_project, "prepared": folder})
    version = publish(store, good, registered.lineage(own_project))
    assert "--accept-unknown" in failed(promote(store, own, version))["accuracy"]
    assert champion(store) is None
    decision = promote(store, own.model_copy(update={"accept_unknown": True}), version)
    assert failed(decision) == {}
    assert champion(store) == 1
    assert "unknown, and accepted" in findings(store)["accuracy"]


def test_a_dry_run_decides_and_changes_nothing(
    store: str, exam: Exam, project: Path, good: Path
) -> None:
    version = publish(store, good, registered.lineage(project), files="0.dir")
    assert "intact" in failed(promote(store, exam, version, dry_run=True))
    assert last(store) == version


def test_a_data_set_that_is_not_prepared_is_refused_before_anything_is_done(
    store: str, exam: Exam, project: Path, good: Path, tmp_path: Path
) -> None:
    version = publish(store, good, registered.lineage(project))
    with pytest.raises(MissingFile, match="prepared data set not found"):
        promote(store, exam.model_copy(update={"prepared": tmp_path / "nothing"}), version)
    assert champion(store) is None


TRY = """
import sys
from pathlib import Path
from pd_core.mlops.registry import trial
task = trial.Task(sys.argv[2], ("0_0.png",), 1, 0, 1, 60)
trial.run(Path(sys.argv[1]), task, Path(sys.argv[3]))
"""


def test_a_trial_ends_soon_after_the_process_that_waits_for_it(
    project: Path, good: Path, tmp_path: Path
) -> None:
    slow = Path(shutil.copytree(good, tmp_path / "slow"))
    note = tmp_path / "process"
    (slow / registered.SCRIPT.name).write_text(
        f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    pictures = str(project / "data" / "prepare" / "pictures")
    waiting = subprocess.Popen(
        [sys.executable, "-c", TRY, str(slow), pictures, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    wait_until(lambda: note.is_file() and note.read_text() != "", seconds=60)
    waiting.kill()
    waiting.wait()
    wait_until(lambda: not psutil.pid_exists(int(note.read_text())), seconds=20)
