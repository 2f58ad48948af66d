"""Searches of parameters for tiny models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import trainings

from pd_core.core.artifacts import read_json, write_json, write_sums
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DatasetRow, Params
from pd_core.pipeline.stages.space import Dimension, SearchParams

NAME = "flowers"
TEACHER: dict[str, Any] = {"epochs": 2, "batch_size": 5, "templates": 2, "gpa_mean": 2}
STUDENT: dict[str, Any] = {"epochs": 6, "batch_size": 4, "image_depth": 2}
SPACE = SearchParams(
    teacher={"lr": Dimension(low=0.001, high=0.1, log=True)},
    student={
        "lr": Dimension(low=0.001, high=0.1, log=True),
        "temperature": Dimension(low=0.5, high=2.0),
    },
)


def project(folder: Path, **split: Any) -> tuple[Params, Job]:
    """Run the stages until `class_vectors` of a data set; return its parameters and job.

    Args:
        folder: of the project.
        split: entries of `split.json` that replace those of `tiny.prepared`.
    """
    prepared = tiny.prepared(folder / "prepare" / NAME)
    content = read_json(prepared / "split.json")
    write_json(prepared / "split.json", {**content, **split})
    write_sums(prepared)
    made = trainings.run_until_student(
        folder, prepared, tuning=TEACHER, distillation={**STUDENT, "epochs": 1}
    )
    params = trainings.PAPER.model_copy(
        update={
            "teacher": _config(trainings.PAPER.teacher, made["teacher_weights"], TEACHER),
            "student": _config(trainings.PAPER.student, made["weights"], STUDENT),
            "run": trainings.changed(
                trainings.PAPER.run, {**trainings.COMPUTE.model_dump(exclude={"data_root"})}
            ),
            "evaluate": trainings.evaluate_config(folds=2, batch_size=8),
            "datasets": {NAME: DatasetRow()},
            "search": SPACE,
        }
    )
    job = Job.at(
        folder, params.for_dataset(NAME), seed=1, device="cpu", data_root=folder,
        features=folder / "features",
    )  # fmt: skip
    return params, replace(job, teacher=made["teacher"], vectors=made["vectors"])


def _config(config: Any, weights: Path, values: dict[str, Any]) -> Any:
    return trainings.changed(config, {"model": "tiny", "weights": str(weights), **values})
