"""The stages teacher, class_vectors and student, from files to files, with tiny real models."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import trainings

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.core.options import Precision, Selection, TeacherMethod
from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.clip import load_clip
from pd_core.models.teacher import Teacher
from pd_core.training.student import stage as student_stage
from pd_core.training.student import targets
from pd_core.training.student.targets import LiveTeacher
from pd_core.training.teacher import class_vectors as vectors_stage

TEACHER: dict[str, Any] = {
    "model": "tiny",
    "epochs": 2,
    "batch_size": 4,
    "lr": 0.05,
    "gpa_mean": 2,
    "templates": 3,
    "text_depth": 2,
    "image_depth": 2,
}
STUDENT: dict[str, Any] = {
    "model": "tiny",
    "teacher_model": "tiny",
    "epochs": 2,
    "batch_size": 4,
    "lr": 0.01,
    "image_depth": 2,
}


@pytest.fixture(autouse=True)
def _stages_in_a_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(student_stage, "check_agreement", tiny.agreed)
    with tiny.torch_restored():
        yield


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return tiny.prepared(tmp_path / "prepare" / "flowers")


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    return {"teacher": tiny.weights(tmp_path), "student": tiny.weights(tmp_path, seed=1)}


def run_teacher(prepared: Path, weights: dict[str, Path], out: Path, **rest: Any) -> Path:
    trainings.run_teacher(prepared, out, **{**TEACHER, "weights": weights["teacher"], **rest})
    return out


def run_vectors(prepared: Path, weights: dict[str, Path], teacher: Path, out: Path) -> Path:
    vectors_stage.run(prepared, teacher, out, model="tiny", weights=weights["teacher"])
    return out


def run_student(
    prepared: Path, weights: dict[str, Path], teacher: Path, vectors: Path, out: Path, **rest: Any
) -> Path:
    files = {"weights": weights["student"], "teacher_weights": weights["teacher"]}
    trainings.run_student(prepared, teacher, vectors, out, **{**STUDENT, **files, **rest})
    return out


def run_all(prepared: Path, weights: dict[str, Path], root: Path, **rest: Any) -> dict[str, Path]:
    teacher = run_teacher(prepared, weights, root / "teacher" / "flowers")
    vectors = run_vectors(prepared, weights, teacher, root / "vectors" / "flowers")
    student = run_student(prepared, weights, teacher, vectors, root / "student" / "flowers", **rest)
    return {"teacher": teacher, "vectors": vectors, "student": student}


def contents(folders: dict[str, Path]) -> dict[str, bytes]:
    return {
        f"{stage}/{path.name}": path.read_bytes()
        for stage, folder in folders.items()
        for path in sorted(folder.iterdir())
    }


def test_the_stages_write_their_files_and_nothing_else(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    written = contents(run_all(prepared, weights, tmp_path / "a"))

    assert written.keys() == {
        "teacher/teacher.safetensors",
        "teacher/history.json",
        "vectors/class_vectors.safetensors",
        "student/student.safetensors",
        "student/history.json",
    }
    history = json.loads(written["student/history.json"])
    assert [epoch.keys() for epoch in history] == [{"loss", "agreement", "lr"}] * 2
    history = json.loads(written["teacher/history.json"])
    assert history[0].keys() == {
        "loss", "cross_entropy", "text", "image", "logits", "accuracy", "lr",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    first = contents(run_all(prepared, weights, tmp_path / "a"))
    torch.manual_seed(12345)
    torch.rand(7)

    assert contents(run_all(prepared, weights, tmp_path / "b")) == first


def test_another_seed_gives_other_weights(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    first = run_teacher(prepared, weights, tmp_path / "a") / "teacher.safetensors"
    other = run_teacher(prepared, weights, tmp_path / "b", seed=2) / "teacher.safetensors"

    assert first.read_bytes() != other.read_bytes()


def test_labels_of_the_unlabelled_pictures_reach_no_weight_of_the_student(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    folders = run_all(prepared, weights, tmp_path / "a")
    split = json.loads((prepared / "split.json").read_text())
    # Only what distillation may know stays: where the pictures are.
    (prepared / "split.json").write_text(json.dumps({"images": split["images"]}))
    write_sums(prepared)

    again = run_student(
        prepared, weights, folders["teacher"], folders["vectors"], tmp_path / "without labels"
    )

    assert contents({"student": again}) == contents({"student": folders["student"]})


def test_an_unlabelled_list_with_labels_is_refused(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    folders = run_all(prepared, weights, tmp_path)
    (prepared / "unlabelled.json").write_text(json.dumps([["0_0.png", 0]]))
    write_sums(prepared)

    with pytest.raises(BadArtifact, match="list of paths.*prepare@flowers"):
        run_student(prepared, weights, folders["teacher"], folders["vectors"], tmp_path / "out")


def test_the_teacher_never_sees_a_novel_label(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    split = json.loads((prepared / "split.json").read_text())
    split["few_shot"].append(["4_0.png", 4])
    (prepared / "split.json").write_text(json.dumps(split))
    write_sums(prepared)

    with pytest.raises(BadArtifact, match="label 4, but only the first 3 classes"):
        run_teacher(prepared, weights, tmp_path / "out")


def test_class_vectors_cover_base_and_novel_classes(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    folders = run_all(prepared, weights, tmp_path)

    vectors = ClassVectors.load(folders["vectors"] / "class_vectors.safetensors")

    assert vectors.names == tiny.NAMES


def test_the_untrained_teacher_is_the_zero_shot_model(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    out = run_teacher(prepared, weights, tmp_path / "teacher", method=TeacherMethod.CLIP)

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


def test_tuning_lowers_the_teachers_loss_on_its_few_images() -> None:
    labels = torch.arange(16) % len(tiny.NAMES)

    teacher, history = trainings.tune(
        tiny.towers(), tiny.Batches(16, size=8), labels, tiny.NAMES,
        epochs=10, lr=0.02, gpa_mean=9, templates=2,
    )  # fmt: skip

    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    assert history[-1]["accuracy"] > history[0]["accuracy"]
    terms = ("cross_entropy", "text", "image", "logits")
    assert history[-1]["loss"] == pytest.approx(sum(history[-1][term] for term in terms), rel=1e-4)
    assert not teacher.training


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_low_precision_changes_the_losses_little_and_trains_fp32(precision: Precision) -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(teacher, tiny.NAMES)
    labels = torch.arange(16) % len(tiny.NAMES)
    losses = {}
    for kind in (Precision.FP32, precision):
        tuned, first = trainings.tune(
            tiny.towers(), tiny.Batches(16, size=8), labels, tiny.NAMES,
            epochs=2, gpa_mean=2, templates=2, precision=kind,
        )  # fmt: skip
        student, second = trainings.distill(
            tiny.towers(seed=1), teacher, vectors, tiny.Batches(16, size=8),
            epochs=2, lr=1e-4, precision=kind,
        )  # fmt: skip
        losses[kind] = [metrics["loss"] for metrics in (*first, *second)]
        for module in (tuned, student):
            assert {p.dtype for p in module.parameters()} == {torch.float32}

    assert losses[precision] != losses[Precision.FP32]
    assert losses[precision] == pytest.approx(losses[Precision.FP32], rel=0.1)


def test_views_that_come_again_are_judged_once(
    prepared: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = run_all(prepared, weights, tmp_path)
    calls = []
    judge = LiveTeacher.logits

    def counted(teacher: LiveTeacher, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return judge(teacher, batch)

    monkeypatch.setattr(LiveTeacher, "logits", counted)
    for view_epochs, expected in ((None, 6 * 5), (2, 2 * 5)):
        calls.clear()
        run_student(
            prepared, weights, folders["teacher"], folders["vectors"], tmp_path / "out",
            epochs=6, view_epochs=view_epochs,
        )  # fmt: skip
        assert len(calls) == expected


class StopError(Exception):
    """Stands for whatever interrupts a run."""


def stop(epoch: int, _: dict[str, float]) -> None:
    if epoch == 2:
        raise StopError


@pytest.mark.parametrize("view_epochs", [None, 2])
def test_interrupted_stages_end_with_the_same_bytes(
    prepared: Path, weights: dict[str, Path], tmp_path: Path, view_epochs: int | None
) -> None:
    def teacher(out: Path, **rest: Any) -> Path:
        return run_teacher(prepared, weights, out, epochs=4, **rest)

    def student(out: Path, **rest: Any) -> Path:
        options = {"epochs": 4, "view_epochs": view_epochs, **rest}
        return run_student(prepared, weights, tmp_path / "t", tmp_path / "v", out, **options)

    teacher(tmp_path / "t")
    run_vectors(prepared, weights, tmp_path / "t", tmp_path / "v")
    for stage, name in ((teacher, "teacher"), (student, "student")):
        whole = stage(tmp_path / f"whole {name}")
        out = tmp_path / f"resumed {name}"
        with pytest.raises(StopError):
            stage(out, checkpoints=tiny.checkpoints(tmp_path), on_epoch=stop)
        assert not out.exists()
        assert len(list((tmp_path / "checkpoints").iterdir())) == 2

        notes: list[str] = []
        stage(out, checkpoints=tiny.checkpoints(tmp_path, on_note=notes.append))

        assert [note.partition(" '")[0] for note in notes] == ["continues from checkpoint"]
        assert contents({name: out}) == contents({name: whole})
        assert not (tmp_path / "checkpoints").exists()


def test_missing_stages_say_what_to_run(
    prepared: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    nowhere = tmp_path / "none" / "flowers"
    with pytest.raises(MissingFile, match="dvc repro prepare@flowers"):
        run_teacher(nowhere, weights, tmp_path / "out")
    with pytest.raises(MissingFile, match="dvc repro teacher@flowers"):
        run_vectors(prepared, weights, nowhere, tmp_path / "out")
    teacher = run_teacher(prepared, weights, tmp_path / "teacher" / "flowers")
    with pytest.raises(MissingFile, match="dvc repro class_vectors@flowers"):
        run_student(prepared, weights, teacher, nowhere, tmp_path / "out")


def test_vectors_of_another_width_are_refused() -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(Teacher(tiny.towers(joint_width=8)), tiny.NAMES)

    with pytest.raises(BadArtifact, match="width 8 do not fit a teacher of width 16"):
        trainings.distill(tiny.towers(), teacher, vectors, tiny.Batches(8, size=4))


def test_a_teacher_that_looks_at_larger_images_is_refused() -> None:
    large = Teacher(replace(tiny.towers(), name="large", image_size=24))
    vectors = class_vectors.build(large, tiny.NAMES)

    with pytest.raises(BadParams, match="'large' looks at 24 pixels, the student at 16"):
        targets.check_views([trainings.live(large, vectors)], 16)


def test_the_student_stage_looks_at_its_teachers_image_size(
    prepared: Path, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = run_all(prepared, weights, tmp_path)

    def larger(name: str, path: Path, **rest: Any) -> Any:
        towers = load_clip(name, path, **rest)
        return replace(towers, image_size=24) if Path(path) == weights["teacher"] else towers

    monkeypatch.setattr(student_stage, "load_clip", larger)

    with pytest.raises(BadParams, match="choose models of one image size"):
        run_student(prepared, weights, folders["teacher"], folders["vectors"], tmp_path / "out")


def test_a_choice_of_the_epoch_without_scores_is_refused() -> None:
    teacher = Teacher(tiny.towers())
    vectors = class_vectors.build(teacher, tiny.NAMES)

    with pytest.raises(BadParams, match="selection = best_on_val: give a scorer"):
        trainings.distill(
            tiny.towers(), teacher, vectors, tiny.Batches(8, size=4),
            selection=Selection.BEST_ON_VAL,
        )  # fmt: skip
