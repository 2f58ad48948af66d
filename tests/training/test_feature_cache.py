"""Features of frozen towers are computed once and cached, and change no result."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
import torch
import trainings
from torch import Tensor

from pd_core.core.artifacts import read_tensors
from pd_core.core.errors import BadParams, Interrupted
from pd_core.core.options import (
    Augmentation,
    Computed,
    Form,
    OnCorrupt,
    Precision,
    TeacherMethod,
    TeacherWeighting,
)
from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.preprocessing import config_of_file
from pd_core.models.teacher import Teacher
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Run
from pd_core.training.loop.views import CachedViews, TrainingViews, training_views
from pd_core.training.student import stage as student_stage
from pd_core.training.student import targets
from pd_core.training.student.targets import LiveTeacher
from pd_core.training.teacher import class_vectors as vectors_stage
from pd_core.training.teacher import prompt_tuning

GIB = 2**30
TEACHER: dict[str, Any] = {
    "model": "tiny", "epochs": 3, "batch_size": 4, "lr": 0.05, "gpa_mean": 2, "templates": 3,
    "text_depth": 2, "image_depth": 2,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "model": "tiny", "teacher_model": "tiny", "epochs": 3, "batch_size": 4, "lr": 0.01,
    "image_depth": 2,
}  # fmt: skip


class Project:
    """A prepared data set, weights, a tuned teacher and its class vectors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepared = tiny.prepared(folder / "prepare" / "flowers")
        self.teachers_clip = tiny.weights(folder)
        self.students_clip = tiny.weights(folder, seed=1)
        self.loaded: list[Path] = []
        self.notes: list[str] = []

    def store(self, **options: Any) -> FeatureCache:
        defaults: dict[str, Any] = {"limit": GIB, "on_note": self.notes.append}
        return FeatureCache(self.folder / "features", **{**defaults, **options})

    def teacher(self, out: str, **options: Any) -> bytes:
        trainings.run_teacher(
            self.prepared, self.folder / out, weights=self.teachers_clip, **{**TEACHER, **options}
        )
        return (self.folder / out / "teacher.safetensors").read_bytes()

    def student(self, out: str, **options: Any) -> bytes:
        trainings.run_student(
            self.prepared, self.folder / "tuned", self.folder / "v", self.folder / out,
            weights=self.students_clip, teacher_weights=self.teachers_clip,
            **{**STUDENT, **options},
        )  # fmt: skip
        return (self.folder / out / "student.safetensors").read_bytes()

    def cached(self, out: str, *, store: FeatureCache | None = None, **options: Any) -> bytes:
        store = store or self.store()
        return self.student(out, teacher_targets=Computed.CACHED, features=store, **options)

    def loads_of_the_teacher(self) -> int:
        return self.loaded.count(self.teachers_clip)

    def stored(self) -> set[str]:
        return {
            path.relative_to(self.folder / "features").as_posix()
            for path in (self.folder / "features").rglob("*.safetensors")
        }


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tiny.torch_restored():
        made = Project(tmp_path_factory.mktemp("tuned"))
        made.teacher("tuned")
        vectors_stage.run(
            made.prepared, made.folder / "tuned", made.folder / "v",
            model="tiny", weights=made.teachers_clip,
        )  # fmt: skip
    return made.folder


@pytest.fixture
def project(tmp_path: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(student_stage, "check_agreement", tiny.agreed)
    with tiny.torch_restored():
        made = Project(tmp_path)
        for name in ("tuned", "v"):
            shutil.copytree(tuned / name, tmp_path / name)

        def load(name: str, weights: Path, *, device: Any = "cpu") -> ClipTowers:
            made.loaded.append(Path(weights))
            return tiny.loaded(name, weights, device)

        monkeypatch.setattr(student_stage, "load_clip", load)
        yield made


@pytest.mark.parametrize(
    "options",
    [
        {"view_epochs": 2, "accumulate": 2},
        {"form": Form.FEATURES_L1},
        {
            "further_teachers": [{}], "teacher_weighting": TeacherWeighting.CONFIDENCE,
            "temperature": 2.0,
        },
        {"precision": Precision.BF16, "workers": 1},
    ],
)  # fmt: skip
def test_cached_targets_in_full_precision_give_the_same_bytes_as_a_teacher_online(
    project: Project, options: dict[str, Any]
) -> None:
    online = project.student("online", **options)

    assert project.cached("first", **options) == online
    assert project.cached("again", **options) == online


def test_teachers_of_larger_and_otherwise_normalised_images_see_the_students_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student_stage, "check_agreement", tiny.agreed)
    project = Project(tmp_path)
    (tmp_path / "large").mkdir()
    project.teachers_clip = tiny.weights(tmp_path / "large", image_size=24)
    other = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    config_of_file(project.teachers_clip).write_text(json.dumps({"preprocess_cfg": other}))
    further = [{"model": "tiny", "weights": str(project.students_clip)}]
    options: dict[str, Any] = {"teacher_model": "tiny-24", "further_teachers": further, "epochs": 2}
    with tiny.torch_restored():
        project.teacher("tuned", model="tiny-24", epochs=1)
        vectors_stage.run(
            project.prepared, tmp_path / "tuned", tmp_path / "v",
            model="tiny-24", weights=project.teachers_clip,
        )  # fmt: skip
        online = project.student("online", **options)

        assert project.cached("first", **options) == online
        assert project.cached("again", **options) == online


def test_a_tuned_and_a_zero_shot_teacher_of_another_kind_give_the_same_bytes_cached_and_online(
    project: Project,
) -> None:
    model, weights = architectures.stored("EVA02-B-16", project.folder)
    options: dict[str, Any] = {
        "further_teachers": [{"model": model, "weights": str(weights)}],
        "teacher_weighting": TeacherWeighting.CONFIDENCE, "epochs": 2,
    }  # fmt: skip

    online = project.student("online", **options)

    assert project.cached("first", **options) == online
    assert project.cached("again", **options) == online
    assert project.student("alone", epochs=2) != online


def test_once_recorded_the_teacher_is_not_even_loaded(project: Project) -> None:
    project.cached("first", epochs=2)
    assert project.loads_of_the_teacher() == 1

    project.cached(
        "other", epochs=1, temperature=2.0, kd_weight=10.0, projector_layers=3, lr=0.1,
        image_depth=1,
    )  # fmt: skip
    assert project.loads_of_the_teacher() == 1


def test_more_epochs_record_only_what_is_new(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.cached("short")
    before = project.stored()
    calls: list[int] = []
    logits = LiveTeacher.logits

    def counted(teacher: LiveTeacher, batch: Batch) -> Tensor:
        calls.append(1)
        return logits(teacher, batch)

    monkeypatch.setattr(LiveTeacher, "logits", counted)
    project.cached("long", epochs=5)

    assert len(project.stored() - before) == 2
    assert len(calls) == 2 * 5  # five batches an epoch


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2},
        {"batch_size": 5},
        {"crop_scale": (0.5, 1.0)},
        {"flip": False},
        {"precision": Precision.BF16},
        {"form": Form.FEATURES_MSE},
        {"on_corrupt": OnCorrupt.SKIP},
    ],
)
def test_other_views_or_other_targets_are_recorded_anew(
    project: Project, changed: dict[str, Any]
) -> None:
    project.cached("first", epochs=1)
    before = project.stored()

    project.cached("other", epochs=1, **changed)

    assert len(project.stored() - before) == 1
    assert project.loads_of_the_teacher() == 2


def test_another_teachers_targets_are_computed_anew(project: Project) -> None:
    project.cached("first")
    project.teacher("tuned", seed=2)

    online = project.student("online")

    assert project.cached("other") == online


def test_half_precision_moves_the_student_by_no_more_than_it_rounds(project: Project) -> None:
    exact, store = project.student("online", epochs=2), project.store(half=True)
    project.cached("half", store=store, epochs=2)

    files = (project.folder / name / "student.safetensors" for name in ("online", "half"))
    online, half = (read_tensors(file)[0] for file in files)
    assert (project.folder / "half" / "student.safetensors").read_bytes() != exact
    for name, value in online.items():
        torch.testing.assert_close(half[name], value, rtol=0, atol=2e-3)


def views_of(prepared: Path, *, count: int = 20) -> TrainingViews:
    paths = [f"{n % 5}_{n // 5}.png" for n in range(count)]
    config = trainings.student_config(batch_size=4, crop_scale=(0.5, 1.0), flip=True)
    root = prepared.parent.parent / "prepare" / "pictures"
    return training_views(prepared, root, paths, Preprocess(16), config, trainings.COMPUTE)


@pytest.mark.parametrize(("classes", "kind", "width"), [(5, "logits", 5), (20, "features", 16)])
@pytest.mark.parametrize("half", [False, True])
def test_whichever_is_smaller_is_stored_and_gives_the_same_logits(
    tmp_path: Path, classes: int, kind: str, width: int, *, half: bool
) -> None:
    teacher = Teacher(tiny.towers()).eval()
    names = [f"class {n}" for n in range(classes)]
    vectors = class_vectors.build(teacher, names)
    views = views_of(tiny.prepared(tmp_path / "prepare" / "flowers"))
    store = FeatureCache(tmp_path / "features", limit=GIB, half=half)

    (recorded,) = targets.cached_teachers(
        lambda: [trainings.live(teacher, vectors)], [["tiny"]], vectors, views,
        trainings.student_config(epochs=2), Run(trainings.COMPUTE, features=store),
    )  # fmt: skip

    (folder,) = (tmp_path / "features").iterdir()
    assert folder.name.startswith(f"teacher-{kind}-")
    stored = store.read(folder, "epoch-0002")
    assert stored is not None
    assert stored.shape == (20, width)
    assert stored.dtype == (torch.float16 if half else torch.float32)
    for batch in views.batches.epoch(2):
        expected = trainings.live(teacher, vectors).logits(batch)
        values = recorded.logits(batch)
        if not half:
            assert torch.equal(values, expected)
        torch.testing.assert_close(
            values.log_softmax(1), expected.log_softmax(1), rtol=0, atol=0.02
        )


def test_batches_that_are_encoded_together_give_every_image_its_own_features(
    tmp_path: Path,
) -> None:
    teacher = Teacher(tiny.towers()).eval()
    vectors = class_vectors.build(teacher, [f"class {n}" for n in range(5)])
    views = views_of(tiny.prepared(tmp_path / "prepare" / "flowers"))
    run, sizes = Run(trainings.COMPUTE), []

    def source(batch: Batch) -> Tensor:
        sizes.append(len(batch.images))
        return trainings.live(teacher, vectors).logits(batch)

    tables = {}
    for at_once in (1, 3):
        store = FeatureCache(tmp_path / str(at_once), limit=GIB, half=True)
        record = CachedViews(
            store, store.place("logits", {}), count=20, width=5, device=run.device, at_once=at_once
        )
        record.complete(2, lambda: (views.batches, source), run, what="the logits")
        tables[at_once] = store.read(record.place, "epoch-0002")

    assert sizes == [4] * 10 + [12, 8] * 2
    assert tables[1] is not None
    torch.testing.assert_close(tables[3], tables[1], rtol=0, atol=0.02)


def test_views_that_are_resized_on_the_device_can_be_cached_too(project: Project) -> None:
    device = Augmentation.DEVICE

    online, on_cpu = project.student("online", augmentation=device), project.student("cpu")
    cached = project.cached("s", store=project.store(half=False), augmentation=device)

    assert cached == online
    assert online != on_cpu
    project.cached("s", store=project.store(half=False))
    assert project.loads_of_the_teacher() == 4, "the views of the CPU are others"


def test_the_size_of_the_records_is_announced(project: Project) -> None:
    project.cached("s", store=project.store(half=True))

    message = "records the teacher's logits: 3 epochs of 20 images, 5 numbers each, 600 bytes in"
    assert project.notes[0].startswith(message)


def test_more_than_the_limit_is_refused_before_anything_is_computed(project: Project) -> None:
    with pytest.raises(BadParams, match=r"logits take 1\.2 KiB, and run\.features_gb allows 1\.0"):
        project.cached("s", store=project.store(limit=1024))

    assert project.stored() == set()
    assert project.loads_of_the_teacher() == 0
    project.cached("s", store=project.store(limit=1024), view_epochs=2)


def test_what_was_used_longest_ago_makes_room_for_new_features(project: Project) -> None:
    project.cached("s", epochs=1)
    size = sum(path.stat().st_size for path in (project.folder / "features").rglob("*.*"))
    store = project.store(limit=2 * size)
    for seed in (2, 1, 3):
        project.cached("s", store=store, seed=seed, epochs=1)

    assert sum("removed" in note for note in project.notes) == 1
    assert len(project.stored()) == 2
    before = project.loads_of_the_teacher()
    for seed, loads in ((1, 0), (3, 0), (2, 1)):
        project.cached("s", store=store, seed=seed, epochs=1)
        assert project.loads_of_the_teacher() == before + loads


def test_files_that_other_processes_write_and_remove_meanwhile_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureCache(tmp_path, limit=1000)
    own, other = store.place("kind", {"number": 1}), store.place("kind", {"number": 2})
    store.write(other, "all", torch.zeros(200))
    gone = other / ".all.safetensors.x.partial"
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, mask: [*glob(self, mask), gone / "x", gone])

    store.make_room(own, 500, what="features", remedy="need less")

    assert not other.exists()


def test_a_damaged_record_is_made_again(project: Project) -> None:
    online = project.cached("first")
    (file,) = (project.folder / "features").glob("*/epoch-0002.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    assert project.cached("again") == online
    assert any("is corrupt" in note for note in project.notes)


def test_a_run_that_is_stopped_while_it_records_goes_on_with_the_epoch(project: Project) -> None:
    online = project.student("online")
    steps = iter(range(100))
    checkpoints = tiny.checkpoints(project.folder, interrupted=lambda: next(steps) >= 7)

    with pytest.raises(Interrupted, match="while views of epoch 2 were recorded"):
        project.cached("s", checkpoints=checkpoints)

    assert [name.split("/")[1] for name in project.stored()] == ["epoch-0001.safetensors"]
    assert project.cached("s", checkpoints=tiny.checkpoints(project.folder)) == online


def test_damaged_pictures_are_left_out_as_they_are_online(project: Project) -> None:
    (project.prepared.parent / "pictures" / "2_1.png").write_bytes(b"no picture")
    skip: dict[str, Any] = {"on_corrupt": OnCorrupt.SKIP}
    online = project.student("online", **skip)

    assert project.cached("first", **skip) == online
    assert project.cached("again", **skip) == online


def test_a_student_without_a_cache_cannot_be_trained_on_cached_targets(project: Project) -> None:
    with pytest.raises(BadParams, match="need a feature cache"):
        project.student("s", teacher_targets=Computed.CACHED)


@pytest.mark.parametrize("options", [{}, {"view_epochs": 2, "precision": Precision.BF16}])
def test_a_teacher_tuned_on_cached_frozen_features_has_the_same_bytes(
    project: Project, options: dict[str, Any]
) -> None:
    online = project.teacher("online", **options)
    kept = {"features": project.store(), "frozen_features": Computed.CACHED, **options}

    assert project.teacher("first", **kept) == online
    assert project.teacher("again", **kept) == online
    epochs = options.get("view_epochs", 3)
    assert sum(name.startswith("frozen-images-") for name in project.stored()) == epochs


def test_frozen_images_are_encoded_once_for_all_teachers_of_a_sweep(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"features": project.store(), "frozen_features": Computed.CACHED, "epochs": 1}
    project.teacher("first", **kept)

    def fail(*_: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(Teacher, "frozen_image_features", fail)
    changed = {"lr": 0.1, "text_loss_weight": 1.0, "image_depth": 1, "text_length": 2}
    project.teacher("other", **kept, **changed)


def test_frozen_texts_are_computed_once_for_a_clip_its_names_and_templates(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    compute = prompt_tuning.frozen_text_features

    def counted(towers: Any, names: Any, templates: int) -> Tensor:
        calls.append(templates)
        return compute(towers, names, templates)

    monkeypatch.setattr(prompt_tuning, "frozen_text_features", counted)
    online = project.teacher("online", epochs=1)
    for _ in range(2):
        assert project.teacher("kept", features=project.store(), epochs=1) == online
    project.teacher("other", features=project.store(), templates=4, epochs=1)
    project.teacher("other", features=project.store(), method=TeacherMethod.IVLP, epochs=1)

    assert calls == [3, 3, 4]
