"""`promptkd data verify` for own images as people have them: refused, noted, and shown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pd_core.cli import data as cli_data
from pd_core.cli.common import setting_of
from pd_core.core.errors import BadParams
from pd_core.pipeline.stages import jobs

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project whose own data set `mine` has pictures below data/raw/mine."""
    params = (
        (PROJECT / "params.yaml").read_text().replace("pd_core/models", f"{PROJECT}/pd_core/models")
    )
    row = "{own: {labelled: mine/labelled, unlabelled: mine/unlabelled, test: mine/test}}"
    prepare = f"{{shots: 2, {row[1:-1]}}}"
    (tmp_path / "params.yaml").write_text(f"{params}  mine: {{prepare: {prepare}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    return tmp_path / "data" / "raw" / "mine"


def fill(folder: Path, *classes: str, count: int = 3, first: int = 0) -> None:
    """Write different pictures for the train list, the test list, or as unlabelled ones."""
    for number, name in enumerate(classes):
        for i in range(first, first + count):
            file = folder / name / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, i]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(file)


def complete(project: Path, *classes: str) -> None:
    fill(project / "labelled", *classes)
    fill(project / "test", *classes, first=100)
    fill(project / "unlabelled", ".", first=200)


def verify(*options: str) -> Result:
    result = CliRunner().invoke(cli_data.app, ["verify", "mine", *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_classes_are_listed_and_shown_on_a_contact_sheet(project: Path) -> None:
    complete(project, "box", "circle")
    (project / "unlabelled" / "notes.txt").write_text("of no interest")

    result = verify()

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "mine: ok, 2 classes, 6 train, 0 validation and 6 test images (own pictures)",
        "mine: note: files that are not read: 1 .txt",
        "        class   train    val   test  example",
        "     1  box         3      0      3  labelled/box/000.png",
        "     2  circle      3      0      3  labelled/circle/000.png",
        "  3 unlabelled images, such as unlabelled/200.png",
        "  contact sheet: data/contact_sheets/mine.jpg",
    ]
    with Image.open("data/contact_sheets/mine.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_json_has_the_same(project: Path) -> None:
    complete(project, "box", "circle")
    (project / "unlabelled" / "notes.txt").write_text("of no interest")

    (report,) = json.loads(verify("--json").stdout)

    assert report["ok"]
    assert report["notes"] == ["files that are not read: 1 .txt"]
    assert report["classes"][1] == {
        "name": "circle", "train": 3, "val": 0, "test": 3,
        "examples": [f"{part}/circle/{first + i:03}.png"
                     for part, first in (("labelled", 0), ("test", 100)) for i in range(3)],
    }  # fmt: skip
    assert report["unlabelled"] == 3
    assert report["unlabelled_examples"] == [f"unlabelled/{i}.png" for i in range(200, 203)]
    assert report["left_out"] == {".txt": 1}
    assert Path(report["contact_sheet"]).is_file()


def test_three_names_of_one_text_are_refused(project: Path) -> None:
    complete(project, "Hex_Nut", "hex nut", "HEX NUT", "screw")

    result = verify()

    assert result.exit_code == 1
    assert result.stdout.startswith(
        "mine: classes 'HEX NUT', 'Hex_Nut' and 'hex nut' have the same text for CLIP, which "
    )


def test_names_that_are_equal_within_the_context_length_of_the_models_are_refused(
    project: Path,
) -> None:
    complete(project, "番茄植株叶片早疫病初期", "番茄植株叶片早疫病晚期")

    result = verify()

    assert result.exit_code == 1
    assert "have the same text for model 'embedded-student', which reads 32 tokens" in result.stdout


def test_a_long_name_is_noted_for_each_model_that_truncates_it(project: Path) -> None:
    complete(project, "番茄植株叶片早疫病初期", "tea")

    result = verify()

    assert result.exit_code == 0
    for model in ("embedded-student", "embedded-teacher"):
        assert f"mine: note: model '{model}' reads 32 of the 40 tokens of class" in result.stdout


def test_copies_are_noted_and_two_labels_are_refused(project: Path) -> None:
    complete(project, "box", "circle")
    shutil.copy(project / "labelled/circle/000.png", project / "test/circle/copy.png")
    shutil.copy(project / "test/circle/100.png", project / "unlabelled/t.png")
    shutil.copy(project / "labelled/circle/002.png", project / "labelled/box/conflict.png")

    result = verify()

    assert result.exit_code == 1
    assert [line.partition(",")[0] for line in result.stdout.splitlines()[:3]] == [
        "mine: 'labelled/box/conflict.png' of class 'box' and 'labelled/circle/002.png' of class "
        "'circle' are the same image: keep the one with the right label",
        "mine: note: copies of train images among the test images: 1",
        "mine: note: copies of test images among the unlabelled images: 1",
    ]


def test_damage_among_the_unlabelled_images_is_found(project: Path) -> None:
    complete(project, "box", "circle")
    picture = (project / "unlabelled/200.png").read_bytes()
    (project / "unlabelled/half.png").write_bytes(picture[: len(picture) // 2])

    assert verify().exit_code == 0
    result = verify("--full", "--workers", "1")

    assert result.exit_code == 1
    assert result.stdout.startswith("mine: 'unlabelled/half.png' is damaged (image file is trunc")


def prepare(project: Path) -> list[str]:
    """Record the fingerprint, run the stage, and return its notes."""
    notes: list[str] = []
    CliRunner().invoke(cli_data.app, ["fingerprint", "mine"], catch_exceptions=False)
    jobs.prepare(replace(setting_of("mine").job, data_root=project.parent), on_note=notes.append)
    return notes


def test_the_preparation_refuses_names_that_are_equal_within_the_context_length(
    project: Path,
) -> None:
    complete(project, "番茄植株叶片早疫病初期", "番茄植株叶片早疫病晚期")

    with pytest.raises(BadParams, match="have the same text for model 'embedded-student'"):
        prepare(project)
    assert not Path("data/prepare/mine").exists()


def test_the_preparation_notes_what_the_check_notes(project: Path) -> None:
    complete(project, "番茄植株叶片早疫病初期", "tea")
    shutil.copy(project / "test/tea/100.png", project / "unlabelled/t.png")

    notes = prepare(project)

    checked = [line for line in verify().stdout.splitlines() if line.startswith("mine: note: ")]
    assert len(notes) == 3
    assert {note.removeprefix("mine: ") for note in notes} == {
        line.removeprefix("mine: note: ") for line in checked
    }
