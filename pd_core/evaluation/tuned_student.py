"""Stage `tuned_student`: the paper's main baseline, prompts tuned on the student's own CLIP.

The few labels train it as they train the teacher, nothing is distilled (paper, table 1: PromptSRC
on ViT-B/16, harmonic mean 79.97 against 83.73).
"""

from pathlib import Path
from typing import Any

import torch

from pd_core.core.artifacts import write_json
from pd_core.core.options import OnCorrupt, Precision
from pd_core.data.loading.prepared import read_prepared
from pd_core.evaluation.evaluate import judge
from pd_core.models.class_vectors import tuned
from pd_core.training.loop.distributed import from_first
from pd_core.training.teacher import stage as teacher_stage

WHO = "tuned_student"


def run(
    prepared: Path,
    out: Path,
    results: Path,
    *,
    split: str,
    evaluation_batch_size: int,
    data_root: Path = Path(),
    workers: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.FP32,
    on_corrupt: OnCorrupt = OnCorrupt.FAIL,
    **tuning: Any,
) -> dict[str, dict[str, float]]:
    """Tune, store and measure the baseline.

    Args:
        prepared: folder written by the stage `prepare`.
        out: folder to write `teacher.safetensors` and `history.json` into.
        results: file to write the accuracy to.
        split: `test`, or `val`.
        evaluation_batch_size: images per step of the measurement; memory only.
        data_root: folder that holds the photo data sets.
        workers: processes that decode pictures; they change nothing.
        device: where to compute.
        precision: what the towers compute in.
        on_corrupt: what to do about a damaged picture; a skipped one is counted.
        **tuning: as for `pretrain.run`, with the student's model and weights.

    Returns:
        `tuned_student` -> {base, novel, hm, all}, percent.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadParams: a number is out of range, or training diverged.
        BadData: there are no images to evaluate on, or one is damaged.
    """
    common: dict[str, Any] = {
        "data_root": data_root, "workers": workers, "device": device, "precision": precision,
        "on_corrupt": on_corrupt,
    }  # fmt: skip
    teacher = teacher_stage.run(prepared, out, **common, **tuning)

    def measure() -> dict[str, dict[str, float]]:
        content = read_prepared(prepared, data_root=data_root)
        judged = judge(
            {WHO: tuned(teacher, content.classes)},
            content,
            split=split,
            image_size=teacher.towers.image_size,
            batch_size=evaluation_batch_size,
            workers=workers,
            device=teacher.towers.device,
            precision=precision,
            on_corrupt=on_corrupt,
        )
        metrics = judged.metrics()
        write_json(results, {**metrics, **judged.note()})
        return metrics

    return from_first(measure)
