"""The training of a student on image files: by the loop of the stage, and by the plain path."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import miniatures
import torch
import trainings
from torch.utils.data import DataLoader

from benchmarks.gpu import plain_loop
from benchmarks.gpu.busy import Waiting
from benchmarks.gpu.setting import Size, tokens, towers
from pd_core.core.hooks import NO_HOOKS, Hooks
from pd_core.core.options import Augmentation, Computed, Precision
from pd_core.data.loading.prepared import write_prepared
from pd_core.models import class_vectors
from pd_core.models.clip import ClipTowers
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.loop.feature_cache import FeatureCache
from pd_core.training.loop.fit import Run
from pd_core.training.loop.views import TrainingViews, training_views
from pd_core.training.student.config import StudentConfig
from pd_core.training.student.distillation import distill, untrained_student
from pd_core.training.student.targets import LiveTeacher, TargetSource, cached_teachers

_LIMIT = 2**30  # bytes of cached logits


@dataclass(frozen=True)
class Training:
    """The training of a student for one epoch.

    Attributes:
        size: of the benchmark.
        prepared: folder of the prepared data set, and of cached logits.
        root: of the images.
        paths: of the images.
        live: the teacher and its class vectors.
        small: the student's CLIP.
        augmentation: where views are resized.
    """

    size: Size
    prepared: Path
    root: Path
    paths: tuple[str, ...]
    live: LiveTeacher
    small: ClipTowers
    augmentation: Augmentation = Augmentation.CPU

    @classmethod
    @contextmanager
    def written(cls, size: Size) -> Iterator["Training"]:
        """Write the data set to a temporary folder, and make the models."""
        with tempfile.TemporaryDirectory() as folder:
            data, prepared = Path(folder) / "data", Path(folder) / "prepared"
            pictures = miniatures.write(size.data, data, pixels=size.pixels)
            paths = tuple(picture.path for picture in pictures)
            write_prepared(prepared, {"dataset": size.data.name}, paths)
            names = list(dict.fromkeys(picture.name for picture in pictures))
            teacher = Teacher.untrained(towers(size.teacher, size)).to(size.device).eval()
            vectors = class_vectors.build(teacher, names).to(size.device)
            yield cls(
                size, prepared, data / size.data.folder / size.data.image_dir, paths,
                LiveTeacher(teacher, vectors, Precision.FP16), towers(size.student, size),
            )  # fmt: skip

    @property
    def config(self) -> StudentConfig:
        """The paper's parameters, but for the number of epochs."""
        return trainings.student_config(epochs=1, batch_size=self.size.batch)

    def record(self) -> None:
        """Compute the teacher's logits of all views, and store them."""
        run = self._run(NO_HOOKS)
        self._cached(self._views(run), run)

    def distil(self, computed: Computed, hooks: Hooks = NO_HOOKS) -> Waiting:
        """Train a student by the loop of the stage; return the batches that it has seen."""
        run, config, vectors = self._run(hooks), self.config, self.live.vectors
        views = self._views(run)
        if computed is Computed.CACHED:
            targets, batches = self._cached(views, run), views.batches
        else:
            targets = self.live
            batches = views.shown_to([self.live.teacher.towers.preprocess])
        waiting = Waiting(batches)
        student = untrained_student(self.small, vectors, config, run.compute.seed)
        distill(student, trainings.ensemble(targets), waiting, config, run)
        return waiting

    def plain(self) -> int:
        """Train a student by the plain path; return the number of images that it has seen."""
        teacher, model = self.live.teacher, self.small.preprocess
        student = Student.untrained(
            self.small, feature_width=teacher.towers.joint_width, seed=1
        ).to(self.size.device).train()  # fmt: skip
        transform = plain_loop.random_views(
            model.size, self.config.crop_scale, model.mean, model.std
        )
        loader = DataLoader(
            plain_loop.Images(self.root, self.paths, transform), self.size.batch,
            shuffle=True, drop_last=True, num_workers=self.size.workers,
            pin_memory=self.size.device == "cuda", generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        texts = tokens(teacher, list(self.live.vectors.names))
        losses = plain_loop.train(teacher, student, texts, loader)
        return len(losses) * self.size.batch

    def _run(self, hooks: Hooks) -> Run:
        compute = trainings.compute(
            device=self.size.device, precision=Precision.FP16, workers=self.size.workers,
            augmentation=self.augmentation,
        )  # fmt: skip
        features = FeatureCache(self.prepared / "features", _LIMIT, half=True)
        return Run(compute, hooks, features=features)

    def _views(self, run: Run) -> TrainingViews:
        return training_views(
            self.prepared, self.root, self.paths, self.small.preprocess, self.config, run.compute
        )

    def _cached(self, views: TrainingViews, run: Run) -> TargetSource:
        """Return the stored logits; compute those that are missing."""
        (cached,) = cached_teachers(
            lambda: [self.live], [["teacher"]], self.live.vectors, views, self.config, run
        )
        return cached
