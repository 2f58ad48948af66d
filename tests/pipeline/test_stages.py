"""The stages teacher, class_vectors and student, from files to files, with tiny real models."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import trainings

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.hooks import Hooks
from pd_core.core.options import Precision, Selection, TeacherMethod
from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.precision import is_emulated
from pd_core.models.teacher import Teacher
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import PARAMS, load_params
from pd_core.training.student.targets import LiveTeacher
from pd_core.training.teacher import class_vectors as vectors_stage

TEACHER: dict[str, Any] = {
    "epochs": 2, "batch_size": 4, "lr": 0.05, "gpa_mean": 2, "templates": 3, "text_depth": 2,
    "image_depth": 2,
}  # fmt: skip
STUDENT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "image_depth": 2}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(*tiny.TRAININGS):
        yield


def run_all(folder: Path) -> dict[str, Any]:
    prepared = tiny.prepared(folder / "prepare" / "flowers")
    return trainings.run_until_student(folder, prepared, tuning=TEACHER, distillation=STUDENT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the stages up to the student once; return folders, models and weights."""
    return run_all(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def prepared(made: dict[str, Any], tmp_path: Path) -> Path:
    """Copy the prepared data set, to change it."""
    return Path(shutil.copytree(made["prepared"], tmp_path / "prepare" / "flowers"))


def run_teacher(made: dict[str, Any], out: Path, **rest: Any) -> Path:
    files = {"prepared": made["prepared"], "model": "tiny", "weights": made["teacher_weights"]}
    trainings.run_teacher(out=out, **{**files, **TEACHER, **rest})
    return out


def run_student(made: dict[str, Any], out: Path, **rest: Any) -> Path:
    given = {name: value for name, value in made.items() if name != "student"}
    trainings.run_student(**{**given, "out": out, **STUDENT, **rest})
    return out


def contents(*folders: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


def test_the_stages_write_their_files_and_nothing_else(made: dict[str, Any]) -> None:
    teacher, vectors, student = (
        contents(made[stage]) for stage in ("teacher", "vectors", "student")
    )

    assert teacher.keys() == {"teacher.safetensors", "history.json"}
    assert vectors.keys() == {"class_vectors.safetensors"}
    assert student.keys() == {"student.safetensors", "history.json"}
    history = json.loads(student["history.json"])
    assert [epoch.keys() for epoch in history] == [{"loss", "agreement", "lr"}] * 2
    assert json.loads(teacher["history.json"])[0].keys() == {
        "loss", "cross_entropy", "text", "image", "logits", "accuracy", "lr",
    }  # fmt: skip
    names = ClassVectors.load(made["vectors"] / "class_vectors.safetensors").names
    assert names == tiny.NAMES  # base and novel


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(
    made: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(12345)
    torch.rand(7)

    again = run_all(tmp_path)

    for stage in ("teacher", "vectors", "student"):
        assert contents(again[stage]) == contents(made[stage])


def test_another_seed_gives_other_weights(made: dict[str, Any], tmp_path: Path) -> None:
    other = run_teacher(made, tmp_path / "other", seed=2)

    assert contents(other) != contents(made["teacher"])


def test_labels_of_the_unlabelled_images_reach_no_weight_of_the_student(
    made: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    split = json.loads((prepared / "split.json").read_text())
    # Only what distillation may read stays: the place of the images.
    (prepared / "split.json").write_text(json.dumps({"images": split["images"]}))
    write_sums(prepared)

    again = run_student(made, tmp_path / "without labels", prepared=prepared)

    assert contents(again) == contents(made["student"])


def test_an_unlabelled_list_with_labels_is_refused(
    made: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    (prepared / "unlabelled.json").write_text(json.dumps([["0_0.png", 0]]))
    write_sums(prepared)

    with pytest.raises(BadArtifact, match="list of paths.*prepare@flowers"):
        run_student(made, tmp_path / "out", prepared=prepared)


def test_the_teacher_never_sees_a_novel_label(
    made: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    split = json.loads((prepared / "split.json").read_text())
    split["few_shot"].append(["4_0.png", 4])
    (prepared / "split.json").write_text(json.dumps(split))
    write_sums(prepared)

    with pytest.raises(BadArtifact, match="label 4, but only the first 3 classes"):
        run_teacher(made, tmp_path / "out", prepared=prepared)


def test_the_untrained_teacher_is_the_zero_shot_model(made: dict[str, Any], tmp_path: Path) -> None:
    out = run_teacher(made, tmp_path / "teacher", method=TeacherMethod.CLIP)

    teacher = Teacher.load(out / "teacher.safetensors", tiny.towers())
    vectors = class_vectors.build(teacher, tiny.NAMES)

    assert json.loads((out / "history.json").read_text()) == []
    zero_shot = class_vectors.build(Teacher(tiny.towers()), tiny.NAMES)
    assert torch.equal(vectors.vectors, zero_shot.vectors)


def test_distillation_brings_the_student_nearer_to_its_teacher() -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(teacher, tiny.NAMES)
    batches = tiny.Batches(32, size=16)

    student, history = trainings.distill(
        tiny.towers(seed=1), teacher, vectors, batches, epochs=20, lr=1e-4
    )

    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert not student.training
    assert student(tiny.images(2)).shape == (2, 16)


def test_targets_of_views_that_come_again_are_computed_once(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    logits = LiveTeacher.logits

    def counted(teacher: LiveTeacher, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return logits(teacher, batch)

    monkeypatch.setattr(LiveTeacher, "logits", counted)
    for view_epochs, expected in ((None, 4 * 5), (2, 2 * 5)):
        calls.clear()
        run_student(made, tmp_path / "out", epochs=4, view_epochs=view_epochs)
        assert len(calls) == expected


def stop(epoch: int, _: dict[str, float]) -> None:
    if epoch == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "options"),
    [(run_teacher, {}), (run_student, {}), (run_student, {"view_epochs": 2})],
)
def test_an_interrupted_stage_ends_with_the_same_bytes(
    made: dict[str, Any], tmp_path: Path, run: Callable[..., Path], options: dict[str, Any]
) -> None:
    whole = run(made, tmp_path / "whole", epochs=4, **options)
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        run(made, out, epochs=4, checkpoints=tiny.checkpoints(tmp_path), on_epoch=stop, **options)
    assert not out.exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2

    notes: list[str] = []
    kept = tiny.checkpoints(tmp_path, on_note=notes.append)
    run(made, out, epochs=4, checkpoints=kept, **options)

    assert [note.partition(" '")[0] for note in notes] == ["continues from checkpoint"]
    assert contents(out) == contents(whole)
    assert not (tmp_path / "checkpoints").exists()


def test_without_an_earlier_stage_the_error_names_the_command(
    made: dict[str, Any], tmp_path: Path
) -> None:
    nowhere = tmp_path / "none" / "flowers"
    with pytest.raises(MissingFile, match="dvc repro prepare@flowers"):
        run_teacher(made, tmp_path / "out", prepared=nowhere)
    with pytest.raises(MissingFile, match="dvc repro teacher@flowers"):
        vectors_stage.run(
            made["prepared"], nowhere, tmp_path / "out", model="tiny",
            weights=made["teacher_weights"],
        )  # fmt: skip
    with pytest.raises(MissingFile, match="dvc repro class_vectors@flowers"):
        run_student(made, tmp_path / "out", vectors=nowhere)


LONG = "a word " * 20  # longer than the tiny model's context


def rename(prepared: Path, name: str) -> None:
    """Rename the last class, which has no labels for the teacher."""
    split = json.loads((prepared / "split.json").read_text())
    split["classes"][-1] = name
    (prepared / "split.json").write_text(json.dumps(split))
    write_sums(prepared)


def test_a_class_with_the_text_of_another_is_refused_before_the_teacher_is_tuned(
    made: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    rename(prepared, "Maine_Coon")

    with pytest.raises(BadParams, match="'maine coon' and 'Maine_Coon' have the same text"):
        run_teacher(made, tmp_path / "out", prepared=prepared)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_truncated_is_noted_by_teacher_and_student(
    made: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    rename(prepared, LONG)
    notes: list[str] = []
    run_teacher(made, tmp_path / "teacher", prepared=prepared, epochs=1, on_note=notes.append)
    vectors = ClassVectors.load(made["vectors"] / "class_vectors.safetensors")
    (tmp_path / "vectors").mkdir()
    renamed = replace(vectors, names=(*vectors.names[:-1], LONG))
    renamed.save(tmp_path / "vectors" / "class_vectors.safetensors")
    run_student(
        made, tmp_path / "student", vectors=tmp_path / "vectors", epochs=1, on_note=notes.append
    )

    assert sum("reads 24 of the 47 tokens of class 'a word" in note for note in notes) == 2


def test_a_class_with_the_text_of_another_is_refused_before_the_student_is_distilled(
    made: dict[str, Any], tmp_path: Path
) -> None:
    vectors = ClassVectors.load(made["vectors"] / "class_vectors.safetensors")
    (tmp_path / "vectors").mkdir()
    renamed = replace(vectors, names=(*vectors.names[:-1], "Maine_Coon"))
    renamed.save(tmp_path / "vectors" / "class_vectors.safetensors")

    with pytest.raises(BadParams, match="'maine coon' and 'Maine_Coon' have the same text"):
        run_student(made, tmp_path / "student", vectors=tmp_path / "vectors")


def test_vectors_of_another_width_are_refused() -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(Teacher(tiny.towers(joint_width=8)), tiny.NAMES)

    with pytest.raises(BadArtifact, match="width 8 do not fit a teacher of width 16"):
        trainings.distill(tiny.towers(), teacher, vectors, tiny.Batches(8, size=4))


def test_a_choice_of_the_epoch_without_scores_is_refused() -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(teacher, tiny.NAMES)

    with pytest.raises(BadParams, match="selection = best_on_val: give a scorer"):
        trainings.distill(
            tiny.towers(), teacher, vectors, tiny.Batches(8, size=4),
            selection=Selection.BEST_ON_VAL,
        )  # fmt: skip


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("stage", [jobs.teacher, jobs.student, jobs.evaluate])
def test_a_precision_that_the_processor_emulates_is_a_warning(
    precision: Precision, stage: Callable[..., object], tmp_path: Path
) -> None:
    params = load_params(Path(__file__).parents[2] / PARAMS).for_dataset("embedded_digits")
    params = params.model_copy(
        update={"run": params.run.model_copy(update={"precision": precision})}
    )
    job = jobs.Job.at(tmp_path, params, seed=1, device="cpu", data_root=tmp_path)
    notes: list[str] = []

    with pytest.raises(MissingFile):  # nothing is prepared
        stage(job, Hooks(on_note=notes.append))

    expected = int(is_emulated(torch.device("cpu"), precision))
    assert [line.count(f"no instructions for {precision}") for line in notes] == [1] * expected
