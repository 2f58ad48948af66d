"""What is served is what the stage `evaluate` says, for every test picture of a data set."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from miniatures import prepare_config
from serving import Running, champion, new_project, serving
from torch.nn.functional import normalize

from pd_core.data.catalog import prepare
from pd_core.data.loading.prepared import read_prepared
from pd_core.mlops.predictor import fold
from pd_core.models.class_vectors import Classifier, ClassVectors, distilled
from pd_core.models.clip import load_clip
from pd_core.models.portable.student import PortableStudent
from pd_core.models.student import Student

# MLflow's own: its type hints when it is imported, SQLAlchemy's deprecations when it searches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.slow,
]

DATASET = "embedded_greek"


def classifier(names: tuple[str, ...]) -> tuple[Classifier, PortableStudent]:
    """Return the same untrained student twice: as it is evaluated, and as it is served."""
    towers = load_clip("embedded-student", None)
    student = Student.untrained(towers, feature_width=64, seed=3).eval()
    directions = torch.randn(len(names), 64, generator=torch.Generator().manual_seed(0))
    vectors = ClassVectors(names, normalize(directions, dim=-1), 30.0, "random")
    network = fold(student, vectors.vectors)
    return distilled(student, vectors), PortableStudent(network, {"names": names})


@pytest.mark.usefixtures("onnx_once")
def test_served_answers_are_those_of_the_stage_for_every_test_picture(
    tmp_path: Path, empty_database: Path, picture: bytes
) -> None:
    prepare.run(
        DATASET,
        tmp_path / DATASET,
        prepare_config(shots=4),
        data_root=tmp_path,
        seed=1,
    )
    content = read_prepared(tmp_path / DATASET)
    evaluated, served = classifier(tuple(content.classes))
    judged = trainings.judge({"student": evaluated}, content, 32)
    expected = torch.from_numpy(judged.logits["student"]).softmax(dim=-1).numpy()
    with zipfile.ZipFile(content.images) as archive:
        pictures = [archive.read(path) for path, _ in judged.items]
    champion(new_project(tmp_path / "project", empty_database), served, picture)

    with serving(tmp_path / "project") as running, ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda one: probabilities(running, one, served.names), pictures))

    found = np.array(answers)
    assert found.shape == (len(content.test), len(content.classes))
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).max() < 1e-5


def probabilities(running: Running, picture: bytes, names: tuple[str, ...]) -> list[float]:
    """Ask for all classes, and return them in the order of their labels."""
    answer = running.post(f"/predict?top={len(names)}", picture).json()
    by_name = {row["name"]: row["probability"] for row in answer["predictions"]}
    return [by_name[name] for name in names]
