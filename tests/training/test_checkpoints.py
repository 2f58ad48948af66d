"""A training that is stopped anywhere resumes there, and ends with the same bits."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainings import fit

from pd_core.core.errors import Interrupted, NoSpace
from pd_core.core.hooks import NO_HOOKS
from pd_core.core.options import Precision
from pd_core.pipeline import code_hash
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import load_params
from pd_core.training.loop.schedule import gaussian_weights
from pd_core.training.student.config import FurtherTeacher


def network() -> nn.Module:
    """Make a small network with batch norm and dropout, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(768, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)
        return nn.Sequential(*layers)


def train(module: nn.Module, *, scored: bool = False, **rest: Any) -> list[dict[str, float]]:
    def step(indices: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        return {"loss": F.cross_entropy(module(images.flatten(1)), indices % 2)}

    kept: dict[str, Any] = {"averaging": gaussian_weights(3, mean=2, deviation=1)}
    if scored:
        kept = {"score": lambda: float(sum(value.detach().sum() for value in module.parameters()))}
    torch.manual_seed(1)  # of the dropout
    return fit(module, step, tiny.Batches(16, size=4), epochs=3, lr=0.1, **kept, **rest)


def stop_after(steps: int) -> Callable[[], bool]:
    """Make the callback that stops a run after a number of calls, one a step."""
    calls = iter(range(1000))
    return lambda: next(calls) >= steps


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """Train a network without a stop."""
    module = network()
    train(module)
    return module


def stopped(folder: Path, steps: int = 6, **rest: Any) -> None:
    kept = tiny.checkpoints(folder, interrupted=stop_after(steps))
    with pytest.raises(Interrupted, match="start the same command again"):
        train(network(), checkpoints=kept, **rest)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_run_that_is_stopped_at_any_step_ends_with_the_same_bits(
    tmp_path: Path, precision: Precision, scored: bool
) -> None:
    whole = network()
    expected = train(whole, scored=scored, precision=precision)

    for steps in range(14):
        folder = tmp_path / str(steps)
        stopped(folder, steps, scored=scored, precision=precision)
        resumed = network()
        history = train(
            resumed, scored=scored, precision=precision, checkpoints=tiny.checkpoints(folder)
        )

        assert same(resumed, whole), steps
        assert history == expected, steps


@pytest.mark.parametrize(("accumulate", "least_stops"), [(1, 6), (2, 4), (3, 3)])
def test_a_run_may_be_stopped_again_and_again(
    tmp_path: Path, accumulate: int, least_stops: int
) -> None:
    whole, stops = network(), 0
    expected = train(whole, accumulate=accumulate)

    while True:
        module = network()
        try:
            kept = tiny.checkpoints(tmp_path, interrupted=stop_after(1))
            history = train(module, accumulate=accumulate, checkpoints=kept)
            break
        except Interrupted:
            stops += 1

    assert stops >= least_stops
    assert same(module, whole)
    assert history == expected


def test_an_epoch_that_is_resumed_reports_those_before_it_too(tmp_path: Path) -> None:
    stopped(tmp_path, 7)
    seen: list[int] = []

    kept = tiny.checkpoints(tmp_path)
    train(network(), checkpoints=kept, on_epoch=lambda epoch, _: seen.append(epoch))

    assert seen == [1, 2, 3]


def test_one_is_due_when_the_minutes_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoints = tiny.checkpoints(tmp_path, minutes=2)

    now = 119.0
    assert not checkpoints.due()
    now = 120.0
    assert checkpoints.due()
    checkpoints.save(1, 1, {}, {})
    assert not checkpoints.due()
    now = 240.0
    assert checkpoints.due()


def test_the_last_two_are_kept_and_all_go_at_the_end(tmp_path: Path) -> None:
    checkpoints = tiny.checkpoints(tmp_path)
    for epoch, step in ((1, 99), (2, 0), (10, 5)):
        checkpoints.save(epoch, step, {"a": torch.ones(epoch)}, {"epoch": str(epoch)})

    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == [
        "checkpoint-000002-000000000.safetensors",
        "checkpoint-000010-000000005.safetensors",
    ]
    assert checkpoints.newest() == checkpoints.folder / "checkpoint-000010-000000005.safetensors"
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest[0]["a"].tolist(), latest[1]) == ([1.0] * 10, {"epoch": "10"})
    checkpoints.remove()
    assert not checkpoints.folder.exists()
    checkpoints.remove()


def test_if_the_newest_is_damaged_the_one_before_is_taken_and_the_bits_are_the_same(
    whole: nn.Module, tmp_path: Path
) -> None:
    stopped(tmp_path)
    notes: list[str] = []
    checkpoints = tiny.checkpoints(tmp_path, on_note=notes.append)
    newest = checkpoints.newest()
    assert newest is not None
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)

    resumed = network()
    train(resumed, checkpoints=checkpoints)

    assert same(resumed, whole)
    assert [note.partition(" '")[0] for note in notes] == [
        "checkpoint", "continues from checkpoint",
    ]  # fmt: skip
    assert "is corrupt" in notes[0]
    assert all("\n" not in note for note in notes)


def test_if_all_are_damaged_they_are_set_aside_and_training_starts_anew(
    whole: nn.Module, tmp_path: Path
) -> None:
    stopped(tmp_path)
    notes: list[str] = []
    checkpoints = tiny.checkpoints(tmp_path, on_note=notes.append)
    for path in checkpoints.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])

    resumed = network()
    train(resumed, checkpoints=checkpoints)

    assert same(resumed, whole)
    assert "damaged are set aside in" in notes[-1]
    assert notes[-1].endswith("training starts anew")


def test_those_of_another_run_are_set_aside_with_one_line(whole: nn.Module, tmp_path: Path) -> None:
    other = tiny.checkpoints(tmp_path, key="other parameters")
    other.save(1, 3, {"a": torch.ones(1)}, {})
    notes: list[str] = []

    module = network()
    train(module, checkpoints=tiny.checkpoints(tmp_path, on_note=notes.append))

    assert same(module, whole)
    (note,) = notes
    assert "of other code, data or parameters are set aside" in note
    assert str(other.folder / "set-aside") in note
    assert len(list((other.folder / "set-aside").iterdir())) == 1


def test_room_for_all_of_them_is_looked_for_before_training(tmp_path: Path) -> None:
    checkpoints = tiny.checkpoints(tmp_path)

    with pytest.raises(NoSpace, match=r"training \(checkpoints\) needs 3072.0 TiB"):
        checkpoints.require_space(2**50)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A data set of the shipped profile whose inputs are there."""
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    made = Job.at(
        tmp_path / "data", params.for_dataset("embedded_digits"), seed=1, device="cpu",
        data_root=tmp_path, checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip
    for folder in (made.prepared, made.teacher, made.vectors):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    return made


def key_of(job: Job, stage: str) -> str:
    made = jobs.checkpoints(job, stage, NO_HOOKS)
    assert made is not None
    assert made.folder == Path(job.checkpoints or "") / stage / "embedded_digits"
    return made.key


def changed(job: Job, block: str, **values: object) -> Job:
    new = getattr(job.params, block).model_copy(update=values)
    return replace(job, params=job.params.model_copy(update={block: new}))


def test_they_are_known_by_data_parameters_seed_and_device(job: Job) -> None:
    first = key_of(job, "student")
    assert key_of(job, "student") == first
    others = [
        key_of(changed(job, "student", lr=0.1), "student"),
        key_of(changed(job, "run", threads=2), "student"),
        key_of(changed(job, "run", precision=Precision.BF16), "student"),
        key_of(replace(job, seed=2), "student"),
        key_of(replace(job, device="cuda"), "student"),
        key_of(job, "teacher"),
    ]
    for folder in (job.prepared, job.teacher, job.vectors):
        before = (folder / "file").read_text()
        (folder / "file").write_text("changed")
        others.append(key_of(job, "student"))
        (folder / "file").write_text(before)
    teacher = FurtherTeacher(folder=str(job.prepared.parent))
    others.append(key_of(changed(job, "student", further_teachers=(teacher,)), "student"))

    assert len({first, *others}) == len(others) + 1


def test_what_changes_no_weight_does_not_set_them_aside(job: Job) -> None:
    first = key_of(job, "teacher")

    assert key_of(changed(job, "run", workers=3, checkpoint_minutes=1.0), "teacher") == first
    assert key_of(changed(job, "student", lr=0.1), "teacher") == first
    (job.vectors / "file").write_text("changed")
    assert key_of(job, "teacher") == first


def test_they_are_known_by_the_code_of_their_stage(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = key_of(job, "teacher")
    monkeypatch.setattr(code_hash, "of_stage", lambda _: {"core": "another"})

    assert key_of(job, "teacher") != first


def test_a_job_without_a_place_for_them_keeps_none(job: Job) -> None:
    assert jobs.checkpoints(replace(job, checkpoints=None), "teacher", NO_HOOKS) is None
