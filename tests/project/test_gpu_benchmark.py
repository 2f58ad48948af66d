"""The benchmark on a GPU compares trainings of the same images, and knows what they wait for."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import tiny
import torch
import trainings
from PIL import Image

from benchmarks import reference, sizes
from benchmarks.gpu import TINY, dataset, memory, plain_loop
from benchmarks.gpu.busy import Busy, Waiting, covered
from benchmarks.gpu.setting import compiled, plain
from benchmarks.gpu.training import Training
from pd_core.core.options import Augmentation, Computed, Precision
from pd_core.data.loading import images as loading
from pd_core.models import class_vectors, prompts
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.student.targets import LiveTeacher

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _restored() -> Iterator[None]:
    with tiny.torch_restored():
        yield


def test_the_plain_loop_trains_on_a_batch_as_the_stage_does() -> None:
    large, small = sizes.build(sizes.TINY_LARGE), sizes.build(sizes.TINY_SMALL)
    teacher, views = Teacher.untrained(large, seed=1).eval(), sizes.images(small, 4)
    tokens = reference.tokenize(large, teacher.texts(list(tiny.NAMES)))
    student = Student.untrained(small, feature_width=large.joint_width, seed=1).train()
    before = [weight.clone() for weight in student.parameters()]

    (loss,) = plain_loop.train(teacher, student, tokens, [views])
    _, history = trainings.distill(
        small, teacher, class_vectors.build(teacher, tiny.NAMES), sizes.OneBatch(views),
        epochs=1, precision=Precision.FP16,
    )  # fmt: skip

    assert loss == pytest.approx(history[0]["loss"], rel=0.01)
    plain_loop.train(teacher, student, tokens, [views] * 20)  # the scaler leaves the first ones out
    after = list(student.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_plain_loop_stops_at_a_loss_that_is_not_finite() -> None:
    large, small = sizes.build(sizes.TINY_LARGE), sizes.build(sizes.TINY_SMALL)
    teacher = Teacher.untrained(large, seed=1).eval()
    tokens = reference.tokenize(large, teacher.texts(list(tiny.NAMES)))
    student = Student.untrained(small, feature_width=large.joint_width, seed=1).train()

    with pytest.raises(RuntimeError, match="not finite"):
        plain_loop.train(teacher, student, tokens, [sizes.images(small, 4) * torch.nan])


def test_torchvision_draws_the_views_that_ours_are() -> None:
    model, scale = Preprocess(16), (0.08, 1.0)
    image = Image.effect_noise((40, 32), 60.0).convert("RGB")
    ours = loading.train_transform(model, scale=scale, flip=True)
    theirs = plain_loop.random_views(model.size, scale, model.mean, model.std)

    for index in range(8):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(loading._hash(1, 1, index))
            drawn = theirs(image)
        expected = tiny.view(ours, image, seed=1, epoch=1, index=index)
        torch.testing.assert_close(drawn, expected)


def test_sides_train_on_a_data_set_from_files_and_are_compared() -> None:
    lines: list[str] = []

    rows = {row.what.partition(", 3 classes, ")[2]: row for row in dataset.rows(TINY, lines.append)}

    ours = ("online", "cached", "cached, resized on the device")
    assert list(rows) == [
        *ours,
        *(f"{side}: recording before" for side in ours[1:]),
        *(f"{side}: waits for images" for side in ours),
    ]
    assert all(row.value > 0 for row in rows.values())
    assert all(row.value < 100 for row in rows.values() if row.unit == "%")
    sides = [line.split(": ")[1] for line in lines if line.startswith("round")]
    assert sides == [*ours, "reference"]


def test_cached_epochs_train_on_recorded_targets_of_the_same_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Training.written(TINY) as training:
        resized = replace(training, augmentation=Augmentation.DEVICE)
        for each in (training, resized):
            each.record()
        assert len(list((training.prepared / "features").iterdir())) == 2

        monkeypatch.delattr(LiveTeacher, "features")
        for each in (training, resized):
            assert each.distil(Computed.CACHED).images == each.plain() == 12
        with pytest.raises(AttributeError, match="features"):
            training.distil(Computed.ONLINE)


class Slow(tiny.Batches):
    """Batches that take a while."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[loading.Batch]:
        for batch in super().epoch(epoch, start=start):
            time.sleep(0.1)
            yield batch


def test_a_training_waits_for_batches_and_not_for_its_own_steps() -> None:
    batches = Waiting(Slow(4, size=2))

    start = time.perf_counter()
    for _ in batches.epoch(1):
        time.sleep(0.3)

    assert batches.images == 4
    assert 0.2 <= batches.seconds <= time.perf_counter() - start - 0.6


def work(seconds: float) -> None:
    end, matrix = time.perf_counter() + seconds, torch.ones(400, 400)
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)


@pytest.mark.parametrize(
    ("during", "otherwise", "least", "most"),
    [(time.sleep, work, 0, 0.1), (work, time.sleep, 0.5, 1)],
)
def test_a_device_is_busy_while_it_computes(
    during: Callable[[float], None], otherwise: Callable[[float], None], least: float, most: float
) -> None:
    busy = Busy(1, 3, CPU)
    for done in range(1, 5):
        busy.on_progress(done, 4)
        (during if done in (1, 2) else otherwise)(0.2)

    assert least <= busy.share() <= most


def test_kernels_of_two_streams_count_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == pytest.approx(4)


def test_the_plain_side_may_use_kernels_that_are_not_deterministic() -> None:
    torch.use_deterministic_algorithms(mode=True)

    def side() -> float:
        return float(torch.are_deterministic_algorithms_enabled())

    assert plain(side)() == 0
    assert side() == 1


def test_blocks_are_compiled_for_one_side_only() -> None:
    def side() -> float:
        assert prompts._compiled is not None
        raise ValueError("fails")

    with pytest.raises(ValueError, match="^fails$"):
        compiled(side)()
    assert prompts._compiled is None


def test_memory_is_measured_on_a_gpu_only() -> None:
    assert memory.rows(TINY, lambda _: None) == []
