"""What the members of a crew do in the tests: `crew.py FOLDER TASK ...` runs tasks in one of them.

A task writes into the folder `TASK` of its folder what only the first may write, and `TASK-0`,
`TASK-1` for what each member saw.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny
import torch
import trainings
from torch import Tensor, nn
from trainings import fit

from pd_core.core.options import Computed, OnCorrupt, TeacherMethod, Trained
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, Share, train_transform
from pd_core.models.portable.preprocess import Preprocess
from pd_core.pipeline import processes
from pd_core.training.loop import distributed
from pd_core.training.loop.checkpoints import Checkpoints
from pd_core.training.loop.feature_cache import FeatureCache

TEACHER: dict[str, Any] = {
    "model": "tiny", "epochs": 2, "batch_size": 5, "lr": 0.05, "gpa_mean": 2, "templates": 3,
    "text_depth": 2, "image_depth": 2,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "model": "tiny", "teacher_model": "tiny", "epochs": 2, "batch_size": 5, "lr": 0.0001,
    "image_depth": 2, "on_corrupt": OnCorrupt.SKIP,
}  # fmt: skip
TEACHERS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "teacher-maple": {"method": TeacherMethod.MAPLE, "max_grad_norm": 0.1, "accumulate": 2},
    "teacher-cached": {"frozen_features": Computed.CACHED},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "student-all": {"trained": Trained.FULL_FINETUNE, "accumulate": 2},
    "student-cached": {"teacher_targets": Computed.CACHED, "view_epochs": 1},
    "student-small-batches": {"batch_size": 3, "epochs": 3},
}


class Exact(nn.Module):
    """A tower and what is behind it, in double precision: rounding cannot hide a mistake."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.tower = nn.Linear(48, 8).double()
            self.head = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()

    def step(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        pooled = nn.functional.avg_pool2d(images.double(), 4).flatten(1)  # (B, 48)
        logits = self.head(distributed.gathered(self.tower(pooled)))
        labels = distributed.gathered(indices) % 3
        return {"loss": nn.functional.cross_entropy(logits, labels)}


def batches(folder: Path, *, size: int = 3) -> ImageBatches:
    """Read the shares of the unlabelled pictures, of which two are damaged."""
    return ImageBatches(
        ImageStore(folder / "pictures"),
        sorted(path.name for path in (folder / "pictures").iterdir()),
        train_transform(Preprocess(16), scale=(0.5, 1.0), flip=True),
        batch_size=size,
        on_corrupt=OnCorrupt.SKIP,
        share=Share(distributed.part, distributed.union),
    )


def exact(folder: Path, out: Path, nudge: float = 0.0) -> None:
    """Train for four epochs, with checkpoints after each step.

    Args:
        folder: of the pictures.
        out: where the state and the history go.
        nudge: by which part of its size each weight is moved up or down before it starts.
    """
    module = Exact()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + nudge * signs.double())
    kept = Checkpoints(out.with_name(f"kept-{distributed.rank()}"), key=str(nudge), minutes=1e-9)
    history = fit(
        module, module.step, batches(folder), epochs=4, lr=0.1, least_batch=2, checkpoints=kept
    )
    torch.save([module.state_dict(), history], out.with_name(f"{out.name}-{distributed.rank()}"))


def nudged(folder: Path, out: Path) -> None:
    """Train likewise from weights that are rounded otherwise: as far apart as rounding brings."""
    exact(folder, out, torch.finfo(torch.float64).eps)


def shown(folder: Path, out: Path) -> None:
    """Note which pictures are read for which batch of two epochs, and what is found damaged."""
    source = batches(folder)
    seen = [[positions.tolist() for positions, *_ in source.epoch(epoch)] for epoch in (1, 2)]
    said = [seen, sorted(source.corrupt), source.left_out]
    torch.save(said, out.with_name(f"{out.name}-{distributed.rank()}"))


def told(_: Path, out: Path) -> None:
    """Tell the others rows of different number, numbers, and whether something is so."""
    me = distributed.rank()
    rows = torch.full((3 * me, 2), float(me), requires_grad=True)  # none in the first
    together = distributed.gathered(rows)
    (together * torch.arange(1.0, 7.0).view(3, 2)).sum().backward()  # type: ignore[no-untyped-call]
    said = {
        "rows": together.detach(),
        "gradient": rows.grad,
        "union": distributed.union({me, 7}),
        "any": [distributed.any_of(me == 1), distributed.any_of(False)],
        "first": distributed.from_first(lambda: me),
    }
    torch.save(said, out.with_name(f"{out.name}-{me}"))


def teacher(folder: Path, out: Path, options: dict[str, Any]) -> None:
    trainings.run_teacher(
        folder / "flowers", _own(out), weights=folder / "tiny-0.safetensors",
        features=FeatureCache(out.with_name(f"{out.name}-features"), limit=2**30),
        **{**TEACHER, **options},
    )  # fmt: skip


def student(folder: Path, out: Path, options: dict[str, Any]) -> None:
    trainings.run_student(
        folder / "flowers", folder / "first", folder / "vectors", _own(out),
        weights=folder / "tiny-1.safetensors", teacher_weights=folder / "tiny-0.safetensors",
        features=FeatureCache(out.with_name(f"{out.name}-features"), limit=2**30),
        checkpoints=Checkpoints(_own(out.with_name("kept")), key=""),
        **{**STUDENT, **options},
    )  # fmt: skip


def _own(out: Path) -> Path:
    """Give each member a folder of its own, so that it shows who writes."""
    return out if distributed.is_first() else out.with_name(f"{out.name}-not-first")


def run(folder: Path, out: Path, name: str) -> None:
    """Run a task: data in `folder`, results in `out`."""
    if name in TEACHERS:
        teacher(folder, out / name, TEACHERS[name])
    elif name in STUDENTS:
        student(folder, out / name, STUDENTS[name])
    else:
        tasks: dict[str, Callable[[Path, Path], None]] = {
            "exact": exact, "nudged": nudged, "shown": shown, "told": told,
        }  # fmt: skip
        tasks[name](folder, out / name)


TASKS = (*TEACHERS, *STUDENTS, "exact", "shown", "told")


@contextmanager
def joined() -> Iterator[None]:
    worker = processes.this_worker()
    assert worker is not None
    processes.end_with_launcher()
    with distributed.process_group("cpu", **asdict(worker)):
        yield


if __name__ == "__main__":
    given, wanted, *names = sys.argv[1:]
    with joined(), tiny.quick_stages("training.teacher.stage", "training.student.stage"):
        tiny.register()
        for each in names or TASKS:
            run(Path(given), Path(wanted), each)
