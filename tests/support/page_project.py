"""A tiny project whose results the page shows."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
import trainings

from pd_core.core.artifacts import write_json
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import REPORT
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import load_params
from pd_core.reporting import page as pages
from pd_core.reporting.page import Page
from pd_core.reporting.protocol_summary import summarise
from pd_core.reporting.results import keys_of
from pd_core.training.teacher import class_vectors as vectors_stage

ROOT = Path(__file__).parents[2]
NAME = "embedded_digits"
PROTOCOLS = {
    Protocol.BASE_TO_NOVEL: (NAME, "embedded_greek", "embedded_latin"),
    Protocol.CROSS_DATASET: (NAME, "embedded_greek"),
    Protocol.DOMAIN_GENERALISATION: ("embedded_latin_chalk", "embedded_latin_neon"),
    Protocol.ALL_CLASSES: (NAME, "embedded_greek", "embedded_latin"),
}


def make(folder: Path) -> Path:
    """Run the stages of a data set of five classes, with tiny models."""
    data = folder / "data"
    prepared = tiny.prepared(data / "prepare" / NAME)
    large, small = tiny.weights(folder), tiny.weights(folder, seed=1)
    teacher, vectors, student, evaluation = (
        data / stage / NAME for stage in ("teacher", "class_vectors", "student", "evaluate")
    )
    with tiny.quick_stages(
        "training.teacher.stage",
        "training.teacher.class_vectors",
        "training.student.stage",
        "evaluation.evaluate",
    ):
        trainings.run_teacher(prepared, teacher, model="tiny", weights=large, epochs=2, templates=2)
        vectors_stage.run(prepared, teacher, vectors, model="tiny", weights=large)
        clip: dict[str, Any] = {"teacher_model": "tiny", "teacher_weights": large}
        mine: dict[str, Any] = {"model": "tiny", "weights": small}
        trainings.run_student(
            prepared, teacher, vectors, student, epochs=2, batch_size=4, **mine, **clip
        )
        trainings.run_evaluate(
            prepared, teacher, vectors, student, evaluation,
            split="test", batch_size=8, **mine, **clip,
        )  # fmt: skip
    return folder


def copy(made: Path, folder: Path) -> Path:
    """Copy what `make` made into a folder of a test's own."""
    shutil.copytree(made / "data", folder / "data")
    for weights in made.glob("*.safetensors"):
        shutil.copy(weights, folder)
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


def job(folder: Path, name: str) -> Job:
    """Lay a data set out as the pipeline does, with the tiny models."""
    params = load_params(ROOT / "params.yaml").for_dataset(name)
    weights = {"teacher": "tiny-0.safetensors", "student": "tiny-1.safetensors"}
    blocks = {
        stage: getattr(params, stage).model_copy(
            update={"model": "tiny", "weights": str(folder / file)}
        )
        for stage, file in weights.items()
    }
    mine = params.model_copy(update=blocks)
    data = folder / "data"
    return Job.at(data, mine, seed=1, device="cpu", data_root=data / "raw")


def gathered(folder: Path) -> Page:
    """Gather the page of two data sets, of which one was run."""
    jobs = {name: job(folder, name) for name in (NAME, "embedded_greek")}
    with tiny.torch_restored():
        return pages.gather(
            jobs, folder / "build", profile="quickstart", root=folder, protocols=folder / REPORT
        )


def protocols(
    folder: Path,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    datasets: Mapping[Protocol, Sequence[str]] = PROTOCOLS,
    source: str = "embedded_latin",
    wild: float = 0.0,
    profile: str = "quickstart",
) -> dict[str, Any]:
    """Write a summary of made-up runs, as the project `protocols/` does.

    Args:
        folder: the repository's root.
        seeds: of the runs.
        datasets: by protocol, what was measured.
        source: whose teacher is measured on other data sets.
        wild: so many points the last seed's student lies lower on the first data set.
        profile: whose runs they are.
    """
    rng = random.Random(0)
    measured = {
        protocol: {
            name: {str(seed): _run(rng, keys_of(protocol)) for seed in seeds} for name in names
        }
        for protocol, names in datasets.items()
    }
    for protocol, runs in measured.items():
        run = next(iter(runs.values()))[str(seeds[-1])]
        run["student"][keys_of(protocol)[-1]] -= wild
    summary = summarise(profile, measured, source)
    path = folder / REPORT / "summary.json"
    write_json(path, summary)
    return summary


def _run(rng: random.Random, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    typical = {"zero_shot_student": 55, "zero_shot_teacher": 65, "teacher": 78, "student": 76}
    return {who: {key: rng.gauss(mean, 0.5) for key in keys} for who, mean in typical.items()}
