"""Corrupt metrics are refused; corrupt checkpoints of a training are skipped."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corruption import (
    OWN,
    PREPARED,
    WRONG,
    Case,
    Change,
    Damage,
    copied,
    damages,
    in_process,
    promptkd,
    put,
    refused,
    replaced,
    shortened,
    turned,
)

from pd_core.core.errors import Interrupted
from pd_core.training.loop.fit import fit

METRICS = Path("data/evaluate") / OWN / "metrics.json"


def score(value: object) -> Damage:
    """Set one number of a result."""

    def damage(project: Path) -> None:
        metrics: dict[str, Any] = json.loads((project / METRICS).read_text())
        metrics["student"]["base"] = value
        (project / METRICS).write_text(json.dumps(metrics))

    return damage


def cases() -> Iterator[Case]:
    named = {
        **damages(METRICS, cuts=(0, 0.3, 0.9)),
        **{f"score {value}": score(value) for value in (101, -1, "high", True, None, [1])},
        "score nan": score(float("nan")),
        "a list": put(METRICS, b"[]"),
        "empty scores": put(METRICS, b"{}"),
        "brackets": put(METRICS, b"[" * 100_000),
    }
    for name, damage in named.items():
        yield Case(f"metrics: {name}", damage, ("report",), str(METRICS))
    split = PREPARED / "split.json"
    for name, data in {"a list": b"[]", "no title": b"{}", **WRONG}.items():
        yield Case(f"report, split.json: {name}", put(split, data), ("report",), str(split))


test_corrupt_results_are_refused = refused(cases())


CHECKPOINTS: dict[str, Change] = {
    **{f"cut at {share}": shortened(share) for share in (0.0, 0.01, 0.5, 0.999)},
    **{f"a bit at {share}": turned(share, 3) for share in (0.0, 0.02, 0.2, 0.5, 0.8, 0.9999)},
    **{kind: replaced(data) for kind, data in WRONG.items()},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", ["teacher", "student"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_corrupt_checkpoint_is_skipped_and_the_result_is_the_same(
    stage: str,
    name: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    output = project / "data" / stage / OWN / f"{stage}.safetensors"
    expected = output.read_bytes()
    module = {
        "teacher": "pd_core.training.teacher.prompt_tuning",
        "student": "pd_core.training.student.distillation",
    }[stage]

    def stopped(*given: Any, **rest: Any) -> Any:
        def on_epoch(epoch: int, _: Any) -> None:
            if epoch == 2:
                raise Interrupted("stopped")

        module, step, batches, config, run = given
        hooks = replace(run.hooks, on_epoch=on_epoch)
        return fit(module, step, batches, config, replace(run, hooks=hooks), **rest)

    with in_process():
        with monkeypatch.context() as change:
            change.setattr(f"{module}.fit", stopped)
            assert promptkd(project, stage, OWN).status == 75
        newest = max((project / "data" / "checkpoints" / stage / OWN).glob("*.safetensors"))
        newest.write_bytes(CHECKPOINTS[name](newest.read_bytes()))
        output.unlink()

        done = promptkd(project, stage, OWN)

    assert done.status == 0, done.err
    assert sum(newest.name in line for line in done.err.splitlines()) == 1
    assert "Traceback" not in done.err
    assert output.read_bytes() == expected
