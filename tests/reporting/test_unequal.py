"""Data sets with classes of unequal size have further metrics wherever a result is shown."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from pd_core.cli import verbs
from pd_core.core.artifacts import write_json
from pd_core.evaluation.class_metrics import of_evaluation
from pd_core.mlops import bundle
from pd_core.mlops.registry.register import Origin
from pd_core.models.portable.preprocess import Preprocess
from pd_core.reporting import unequal

ROOT = Path(__file__).parents[2]
MODELS = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")


def evaluation(folder: Path, labels: list[int], predicted: list[int]) -> Path:
    rows = [
        {"path": f"{row}.png", "label": label, **dict.fromkeys(MODELS, [guess, guess])}
        for row, (label, guess) in enumerate(zip(labels, predicted, strict=True))
    ]
    write_json(folder / "predictions.json", rows)
    return folder


def test_the_terminal_shows_data_sets_with_unequal_classes_alone(tmp_path: Path) -> None:
    evaluation(tmp_path / "equal", [0, 1], [0, 1])
    evaluation(tmp_path / "photos", [0, 0, 0, 1], [0, 0, 0, 0])
    write_json(tmp_path / "unlabelled" / "predictions.json", [{"path": "a.png", "student": 0}])
    measured = unequal.read(tmp_path, ["equal", "photos", "unlabelled", "not_run"])
    assert list(measured) == ["photos"]
    heading, first, *_, constant = unequal.table(measured, {"photos": "My photos"}).body
    assert heading.cells[0] == "My photos"
    assert first.cells[0] == "zero-shot student"
    assert [cell.partition(" ")[0] for cell in first.cells[1:]] == ["75.0", "50.0", "42.9"]
    assert constant.cells == ("largest class", "75.0", "50.0", "–")


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_the_command_prints_them_below_the_report_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "reports" / "quickstart", tmp_path / "reports" / "quickstart")
    evaluation(tmp_path / "data" / "evaluate" / "embedded_greek", [0, 0, 0, 1], [0, 0, 0, 0])
    verbs.app(["show"], standalone_mode=False)
    assert "Classes of unequal size" in capsys.readouterr().out
    verbs.app(["show", "--json"], standalone_mode=False)
    content = json.loads(capsys.readouterr().out)
    student = content["unequal_classes"]["embedded_greek"]["student"]
    assert student["metrics"]["balanced_accuracy"]["value"] == 50
    assert student["recall"] == [100, 0]
    assert content["profile"] == "quickstart"


def card(folder: Path) -> str:
    origin = Origin("quickstart", "photos", classes=of_evaluation(folder))
    info = {"names": ["oak", "elm|b"], "model": "tiny", "vectors": "tiny", "network": {
        "prompt_depth": 1, "layers": 1}, "preprocess": asdict(Preprocess(16))}  # fmt: skip
    accuracy = {"student": {"all": 75.0}}
    tags = {"protocol": "all_classes", "seed": "1", "selection": "last"}
    return bundle.card("promptkd-photos", info, accuracy, {}, tags, origin.classes)


def test_card_and_version_have_them_too(tmp_path: Path) -> None:
    photos = evaluation(tmp_path / "photos", [0, 0, 0, 1], [0, 0, 0, 0])
    text = card(photos)
    assert "The classes have 1 to 3 test images." in text
    assert "\n| distilled student | 75.0 (30.1–95.4) | 50.0 (" in text
    assert "\n| always the largest class | 75.0 | 50.0 | |\n" in text
    assert "\n| oak | 3 | 75 | 100 |\n| elm\\|b | 1 |  | 0 |\n" in text
    tags = Origin("quickstart", "photos", classes=of_evaluation(photos)).version_tags()
    assert tags["student/balanced_accuracy"].startswith("50.0 (")
    assert tags["largest_class"] == "75.0"


def test_nothing_is_added_for_equal_classes(tmp_path: Path) -> None:
    equal = evaluation(tmp_path / "equal", [0, 1], [0, 0])
    assert "largest class" not in card(equal)
    tags = Origin("quickstart", "photos", classes=of_evaluation(equal)).version_tags()
    assert set(tags) == {"kind", "profile"}
