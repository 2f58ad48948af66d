"""Stage `class_vectors`: text features of all classes, by the tuned teacher."""

from pathlib import Path

import torch

from pd_core.core.atomic import write_folder
from pd_core.core.hooks import OnProgress
from pd_core.data.loading.prepared import read_prepared
from pd_core.models.class_vectors import FILE, ClassVectors, build
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads
from pd_core.models.teacher import Teacher


def run(
    prepared: Path,
    teacher: Path,
    out: Path,
    *,
    model: str,
    weights: Path | str | None = None,
    threads: int = 1,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> ClassVectors:
    """Compute and store the vectors of all classes.

    Args:
        prepared: output folder of the stage `prepare`; only its class names are used.
        teacher: output folder of the stage `teacher`.
        out: folder that `class_vectors.safetensors` is written to.
        model: name of the teacher's CLIP.
        weights: of the teacher's CLIP.
        threads: CPU threads; they determine the last bits.
        device: of the computation.
        on_progress: called with classes done and classes in all.

    Returns:
        The vectors, on the CPU.

    Raises:
        MissingFile: an earlier stage has not run.
        BadArtifact: the teacher does not fit the model.
    """
    set_threads(threads)
    classes = read_prepared(prepared).classes
    towers = load_clip(model, weights, device=device)
    tuned = Teacher.load(
        teacher / "teacher.safetensors", towers, remedy=f"run `dvc repro teacher@{teacher.name}`"
    )
    vectors = build(tuned, classes, on_progress=on_progress).to("cpu")
    with write_folder(out) as folder:
        vectors.save(folder / FILE)
    return vectors
