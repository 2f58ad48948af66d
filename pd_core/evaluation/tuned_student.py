"""Stage `tuned_student`: the paper's main baseline, prompts tuned on the student's own CLIP.

It is trained on the few labels as the teacher is, without distillation (paper, table 1: PromptSRC
on ViT-B/16, harmonic mean 79.97 against 83.73).
"""

from pathlib import Path

from pd_core.core.artifacts import write_json
from pd_core.core.hooks import Hooks
from pd_core.data.loading.prepared import read_prepared
from pd_core.evaluation.evaluate import Scores, predict
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.models.class_vectors import tuned
from pd_core.training.loop.distributed import from_first
from pd_core.training.loop.fit import Run
from pd_core.training.teacher import stage as teacher_stage
from pd_core.training.teacher.config import TeacherConfig

MODEL = "tuned_student"


def run(
    prepared: Path,
    out: Path,
    results: Path,
    config: TeacherConfig,
    evaluation: EvaluateConfig,
    run: Run,
) -> Scores:
    """Tune, store and measure the baseline.

    Args:
        prepared: output folder of the stage `prepare`.
        out: folder that `teacher.safetensors` and `history.json` are written to.
        results: file that the accuracy is written to.
        config: of the tuning, with the student's CLIP.
        evaluation: split and batch size.
        run: the surroundings; progress is in steps, then in test images.

    Returns:
        `tuned_student` -> {base, novel, hm, all}, percent.

    Raises:
        MissingFile: images, weights or an earlier stage's output are missing.
        BadParams: a number is out of range, or training diverged.
        BadData: there are no images to evaluate on, or one is corrupt.
    """
    teacher = teacher_stage.run(prepared, out, config, run)

    def measure() -> Scores:
        content = read_prepared(prepared, data_root=run.compute.data_root)
        classifiers = {MODEL: tuned(teacher, content.classes)}
        hooks = Hooks(on_progress=run.hooks.on_progress)
        predicted = predict(classifiers, content, evaluation, run.compute, hooks)
        metrics = predicted.metrics()
        write_json(results, {**metrics, **predicted.note()})
        return metrics

    return from_first(measure)
