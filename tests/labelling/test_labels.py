"""`promptkd data label` gives the teacher labels of unlabelled images, and no others."""

import json
from pathlib import Path

import labelling_project
import photos
import pytest
from command import dvc, promptkd
from labelling_project import NAME, job

from pd_core.core.errors import BadData
from pd_core.data.loading.prepared import Prepared, read_prepared
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import load_params

HEADER = "file,predicted,teacher_confidence,student_confidence,label"
FIRST = ("unlabelled/1-010.png", "digit one")
SECOND = ("unlabelled/2-010.png", "digit two")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = labelling_project.write(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    return folder


def prepared() -> Prepared:
    jobs.prepare(job())
    return read_prepared(job().prepared, data_root=job().data_root)


def write_list(*rows: tuple[str, str]) -> str:
    lines = [HEADER, *(f"{path},digit two,0.5,0.25,{label}" for path, label in rows)]
    Path("list.csv").write_text("\n".join(lines) + "\n")
    return "list.csv"


def label(*rows: tuple[str, str]) -> str:
    done = promptkd(Path(), "data", "label", NAME, write_list(*rows))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*rows: tuple[str, str], name: str = NAME) -> str:
    """Return the only line of an error that changed no file."""
    before = {path: path.read_bytes() for path in Path().rglob("*.[cy]*") if path.is_file()}
    file = write_list(*rows)
    before[Path(file)] = Path(file).read_bytes()
    done = promptkd(Path(), "data", "label", name, file)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    after = {path: path.read_bytes() for path in Path().rglob("*.[cy]*") if path.is_file()}
    assert after == before
    return done.stderr


@pytest.mark.usefixtures("project")
def test_labels_are_added_to_those_that_were_drawn_and_nothing_else_changes() -> None:
    before = prepared()
    assert "mine: 2 new labels, 2 added in all" in label(FIRST, SECOND)
    after = prepared()
    assert after.few_shot == (*before.few_shot, (FIRST[0], 0), (SECOND[0], 2))
    assert [before.classes[0], before.classes[2]] == [FIRST[1], SECOND[1]]
    assert (after.test, after.val, after.classes) == (before.test, before.val, before.classes)
    assert Path("labels/mine.csv").read_text().splitlines() == [
        "path,label", ",".join(FIRST), ",".join(SECOND),
    ]  # fmt: skip


@pytest.mark.usefixtures("project")
def test_a_second_list_is_added_to_the_first_and_known_labels_count_once() -> None:
    label(FIRST)
    assert "mine: 1 new labels, 2 added in all" in label(FIRST, SECOND, SECOND)
    assert [path for path, _ in prepared().few_shot[-2:]] == [FIRST[0], SECOND[0]]


def test_comments_of_the_parameters_stay(project: Path) -> None:
    file = project / "params.yaml"
    file.write_text(f"# of mine\n{file.read_text()}")
    before = file.read_text().splitlines()
    label(FIRST)
    after = file.read_text().splitlines()
    assert [line for line in after if line not in before] != []
    assert set(before) <= set(after)
    own = load_params(file).for_dataset(NAME).prepare.own
    assert own is not None
    assert own.added is not None
    assert own.added.path == "labels/mine.csv"


@pytest.mark.usefixtures("project")
def test_a_label_of_a_test_image_is_refused() -> None:
    test = prepared().test[0][0]
    assert f"'{test}' is an image for validation or test" in refusal(FIRST, (test, "digit zero"))


@pytest.mark.usefixtures("project")
def test_a_label_of_a_copy_of_a_test_image_is_refused() -> None:
    error = refusal(FIRST, ("unlabelled/copy-of-test.png", "digit one"))
    assert "is an image for validation or test, or a copy of one" in error


@pytest.mark.usefixtures("project")
def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    error = refusal(FIRST, (SECOND[0], "digit twoo"))
    assert "unknown class of 'unlabelled/2-010.png': 'digit twoo'; did you mean" in error


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("path", ["unlabelled/nowhere.png", "../params.yaml"])
def test_an_unknown_file_is_refused(path: str) -> None:
    assert f"{path}" in refusal(FIRST, (path, "digit two"))


def test_an_image_beside_the_unlabelled_ones_is_refused(project: Path) -> None:
    images = project / "data" / "raw" / NAME
    (images / "unlabelled" / "1-011.png").rename(images / "other.png")
    assert "'other.png' is no unlabelled image" in refusal(("other.png", "digit one"))


@pytest.mark.usefixtures("project")
def test_a_missing_label_is_refused_with_its_line() -> None:
    assert "line 3 has no label" in refusal(FIRST, (SECOND[0], ""))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("first", [FIRST[0], "labelled/digit one/1-001.png"])
def test_an_image_with_two_labels_is_refused(first: str) -> None:
    error = refusal((first, "digit one"), (first, "digit two"))
    assert f"'{first}' is of class 'digit one' and of 'digit two': give it one" in error


@pytest.mark.usefixtures("project")
def test_another_label_than_that_of_an_earlier_list_is_refused() -> None:
    label(FIRST)
    assert "is of class 'digit one' and of 'digit two'" in refusal((FIRST[0], "digit two"))


@pytest.mark.usefixtures("project")
def test_another_label_than_that_of_a_labelled_copy_is_refused() -> None:
    error = refusal(("unlabelled/copy-of-label.png", "digit two"))
    assert "are the same image: keep the one with the right label" in error


@pytest.mark.usefixtures("project")
def test_the_catalogue_takes_no_labels() -> None:
    text = Path("params.yaml").read_text()
    row = "datasets:\n  embedded_digits: {prepare: {}, teacher: {}, student: {}}\n"
    Path("params.yaml").write_text(text.replace("datasets:\n", row))
    error = refusal(FIRST, name="embedded_digits")
    assert "all labels of 'embedded_digits' are known, as it is in the catalogue" in error


@pytest.mark.usefixtures("project")
def test_a_list_that_was_edited_is_refused_by_the_stage_until_it_is_taken_in() -> None:
    label(FIRST)
    file = Path("labels/mine.csv")
    file.write_text(file.read_text().replace("digit one", "digit two"))
    with pytest.raises(BadData, match=r"is not the list whose SHA-256 is in prepare.own.added"):
        prepared()
    done = promptkd(Path(), "data", "label", NAME, str(file))
    assert done.returncode == 0
    assert prepared().few_shot[-1] == (FIRST[0], 2)


@pytest.mark.usefixtures("project")
def test_labels_of_novel_classes_are_not_given_to_a_teacher_of_base_classes() -> None:
    label(FIRST, SECOND)
    text = Path("params.yaml").read_text()
    assert text.count("      shots: 4\n") == 1
    halved = "      shots: 4\n      protocol: base_to_novel\n"
    Path("params.yaml").write_text(text.replace("      shots: 4\n", halved))
    content = prepared()
    assert {content.classes[label] for _, label in content.few_shot} == {*content.taught}
    assert FIRST[0] in dict(content.few_shot) or SECOND[0] in dict(content.few_shot)


@pytest.mark.slow
def test_after_new_labels_dvc_runs_what_depends_on_them_and_the_test_images_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    photos.write(tmp_path / "photos")
    given = [f"--{part}=photos/{part}" for part in ("labelled", "unlabelled", "test")]
    embedded = ("--teacher", "embedded-teacher", "--student", "embedded-student")
    assert promptkd(tmp_path, "new", NAME, *given, *embedded).returncode == 0
    folder = tmp_path / NAME
    monkeypatch.chdir(folder)
    assert dvc(folder, "repro", f"prepare@{NAME}").returncode == 0
    before = json.loads((folder / f"data/prepare/{NAME}/split.json").read_text())

    label(("unlabelled/1-005.png", "digit one"))

    assert f"prepare@{NAME}" in dvc(folder, "status", f"prepare@{NAME}").stdout
    assert dvc(folder, "repro", f"prepare@{NAME}").returncode == 0
    after = json.loads((folder / f"data/prepare/{NAME}/split.json").read_text())
    assert after.pop("few_shot") == [*before.pop("few_shot"), ["unlabelled/1-005.png", 0]]
    assert after == before
