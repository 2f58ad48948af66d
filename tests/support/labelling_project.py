"""A project with a data set of the user's own, and all its stages up to the student.

Its models are the embedded ones: random ones predict one class for everything.
"""

import contextlib
import shutil
from pathlib import Path

import photos
import tiny
from ruamel.yaml import YAML

from pd_core.data.catalog import fingerprint as prints
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.own import own_sources
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import load_params

ROOT = Path(__file__).parents[2]
NAME = "mine"
OWN = OwnImages(labelled="mine/labelled", unlabelled="mine/unlabelled", test="mine/test")

TRAININGS = (*tiny.TRAININGS, "evaluation.evaluate")


def write(folder: Path, *, test: bool = True) -> Path:
    """Write images, parameters and fingerprint; four of five labels of a class are drawn.

    Among the unlabelled images are a copy of a test image, one of a labelled image, and two of an
    unlabelled one.
    """
    images = photos.write(folder / "data" / "raw" / NAME, labelled=5)
    unlabelled = images / "unlabelled"
    shutil.copy(next((images / "test").rglob("*.png")), unlabelled / "copy-of-test.png")
    shutil.copy(images / "labelled" / "digit one" / "1-000.png", unlabelled / "copy-of-label.png")
    for number in (1, 2):
        shutil.copy(unlabelled / "0-010.png", unlabelled / f"copy-{number}.png")
    own = OWN if test else OWN.model_copy(update={"test": None})
    _write_params(folder, own)
    value = prints.fingerprint(own_sources(own, images.parent), images, level=prints.Level.SAMPLE)
    prints.write(prints.path_of(NAME, folder), value)
    return folder


def _write_params(folder: Path, own: OwnImages) -> None:
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    for stage in ("teacher", "student"):
        weights = ROOT / params[stage]["weights"]
        params[stage].update(weights=str(weights), batch_size=4, epochs=1)
    params["teacher"].update(gpa_mean=1, templates=2)
    prepare = {"own": own.model_dump(exclude_none=True), "shots": 4, "val_shots": 1}
    params["datasets"] = {NAME: {"prepare": prepare, "teacher": {}, "student": {}}}
    YAML().dump(params, folder / "params.yaml")


def job(seed: int | None = None) -> Job:
    """Return the job of the data set in the current folder."""
    params = load_params(Path("params.yaml"))
    suffix = "" if seed is None else f"-{seed}"
    return jobs.job_of(params, NAME, suffix=suffix, **jobs.shared(params, NAME, seed, "cpu", None))


def run_stages(folder: Path) -> Path:
    """Run all stages but `evaluate`."""
    with contextlib.chdir(folder), tiny.quick_stages(*TRAININGS):
        mine = job()
        jobs.prepare(mine)
        jobs.teacher(mine)
        jobs.class_vectors(mine)
        jobs.student(mine)
    return folder
