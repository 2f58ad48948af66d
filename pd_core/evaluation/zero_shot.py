"""The zero-shot table of CLIPs on prepared data sets: who leads before anything is tuned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from pd_core.core.artifacts import write_json, write_text
from pd_core.core.hooks import OnProgress
from pd_core.core.options import Precision
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, eval_transform
from pd_core.data.loading.prepared import read_prepared
from pd_core.evaluation.evaluate import accuracy
from pd_core.models.class_vectors import logits_of, zero_shot
from pd_core.models.clip import load_clip
from pd_core.models.precision import set_threads

Table = dict[str, dict[str, float]]  # data set -> model -> accuracy in percent


def run(
    prepared: Path,
    out: Path,
    *,
    datasets: Sequence[str],
    models: Mapping[str, Path | str | None],
    threads: int,
    batch_size: int = 256,
    on_progress: OnProgress | None = None,
) -> Table:
    """Measure models zero-shot on all classes at once; write `zero_shot.json` and `zero_shot.md`.

    Args:
        prepared: folder of the `prepare` stage's outputs.
        out: folder to write into.
        datasets: the data sets, all prepared.
        models: names of CLIPs, and their weights.
        threads: CPU threads.
        batch_size: images per step.
        on_progress: called with data sets done and data sets in all.

    Returns:
        Top-1 accuracy in percent by data set and model, and a row `average`.

    Raises:
        MissingFile: a data set is not prepared, or weights are missing.
    """
    set_threads(threads)
    towers = {name: load_clip(name, weights) for name, weights in models.items()}
    table: Table = {}
    for done, dataset in enumerate(datasets, start=1):
        content = read_prepared(prepared / dataset)
        size = next(iter(towers.values())).image_size
        batches = ImageBatches(
            ImageStore(content.images),
            [path for path, _ in content.test],
            eval_transform(size),
            batch_size=batch_size,
        )
        classifiers = {name: zero_shot(tower, content.classes) for name, tower in towers.items()}
        device = next(iter(towers.values())).device
        logits = logits_of(classifiers, batches, device, Precision.FP32)
        labels = np.array([label for _, label in content.test])
        table[dataset] = {
            name: round(accuracy(values, labels, content.base_count).all, 2)
            for name, values in logits.items()
        }
        if on_progress is not None:
            on_progress(done, len(datasets))
    table["average"] = {
        name: round(fmean(row[name] for row in table.values()), 2) for name in towers
    }
    write_json(out / "zero_shot.json", table)
    write_text(out / "zero_shot.md", _markdown(table, list(towers)))
    return table


def _markdown(table: Table, models: list[str]) -> str:
    lines = [
        "Zero-shot accuracy on the test images, all classes at once, percent.",
        "",
        "| data set | " + " | ".join(models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for dataset, row in table.items():
        lines.append(f"| {dataset} | " + " | ".join(f"{row[name]:.1f}" for name in models) + " |")
    return "\n".join(lines) + "\n"
