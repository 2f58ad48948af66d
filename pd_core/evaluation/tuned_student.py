"""Stage `tuned_student`: the paper's main baseline, prompts tuned on the student's own CLIP.

The few labels train it as they train the teacher, nothing is distilled (paper, table 1: PromptSRC
on ViT-B/16, harmonic mean 79.97 against 83.73).
"""

from pathlib import Path

from pd_core.core.artifacts import write_json
from pd_core.core.hooks import NO_HOOKS
from pd_core.data.loading.prepared import read_prepared
from pd_core.evaluation.evaluate import judge
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import tuned
from pd_core.training.loop.distributed import from_first
from pd_core.training.loop.fit import Run
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import TeacherConfig

WHO = "tuned_student"


def run(
    prepared: Path,
    out: Path,
    results: Path,
    config: TeacherConfig,
    evaluation: EvaluateConfig,
    run: Run,
) -> dict[str, dict[str, float]]:
    """Tune, store and measure the baseline.

    Args:
        prepared: folder written by the stage `prepare`.
        out: folder to write `teacher.safetensors` and `history.json` into.
        results: file to write the accuracy to.
        config: of the tuning, with the student's CLIP.
        evaluation: how it is measured.
        run: the surroundings.

    Returns:
        `tuned_student` -> {base, novel, hm, all}, percent.

    Raises:
        MissingFile: pictures, weights or an earlier stage are missing.
        BadParams: a number is out of range, or training diverged.
        BadData: there are no images to evaluate on, or one is damaged.
    """
    teacher = teacher_stage.run(prepared, out, config, run)

    def measure() -> dict[str, dict[str, float]]:
        content = read_prepared(prepared, data_root=run.compute.data_root)
        classifiers = {WHO: tuned(teacher, content.classes)}
        size = teacher.towers.image_size
        judged = judge(classifiers, content, size, evaluation, run.compute, NO_HOOKS)
        metrics = judged.metrics()
        write_json(results, {**metrics, **judged.note()})
        return metrics

    return from_first(measure)
