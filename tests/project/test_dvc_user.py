"""DVC's own commands in a project of own images: a queue, plots, a model for another folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import photos
import pytest
import typed_commands
from command import dvc, promptkd
from git_repository import commit

from pd_core.mlops import tracking

NAME = "digits"
SHORT = {"epochs: 10 ": "epochs: 2  ", "epochs: 12 ": "epochs: 2  ", "gpa_mean: 8 ": "gpa_mean: 2 "}

# Commands of DVC's own tutorials, with a text that each prints.
AFTERNOON = (
    ("dvc exp apply low", "Changes for experiment 'low' have been applied"),
    ("git add --all && git commit --allow-empty --message results", "results"),
    ("dvc stage list", "student@digits        Distil"),
    ("dvc dag --mermaid", "teacher@digits"),
    ("dvc status", "always changed"),  # `code` alone
    ("dvc repro", "Stage 'report' didn't change, skipping"),
    ("dvc metrics show", "data/evaluate/digits/metrics.json"),
    ("python3 -m pd_core offline-plots", "`dvc plots` uses it"),
    ("dvc plots show && ! grep --quiet cdn.jsdelivr.net dvc_plots/index.html", "index.html"),
    ("dvc exp run --name high -S ++datasets.digits.student.lr=0.01", "Ran experiment(s): high"),
    ("dvc params diff", "datasets.digits.student.lr  0.002"),
    ("dvc metrics diff --all", "student.all"),
    ("dvc plots diff", "index.html"),
    ("dvc exp diff HEAD high", "datasets.digits.student.lr  0.002"),
    ("dvc exp show --only-changed --csv", "high"),
    ("dvc exp run --temp --name cold -S ++datasets.digits.student.lr=0.02 student@digits",
     "Ran experiment(s): cold"),
    ("MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow runs list --experiment-id 1", "cold"),
    ("dvc exp rename high higher", "Renamed experiments: 'high'"),
    ("dvc exp branch higher faster", "Git branch 'faster' has been created"),
    ("git checkout . && dvc checkout", "data/student/digits/student.safetensors"),
    ("dvc exp run --queue -S student.lr=0.001,0.003", "Queued experiment"),
    ("dvc queue status", "Queued"),
    ("dvc queue remove --all", "Removed tasks in queue"),
    ("dvc remote add --default storage ../storage && git commit -am remote", "storage"),
    ("dvc push", "files pushed"),
    ("dvc status --cloud", "Cache and remote 'storage' are in sync."),
    ("git init --bare ../hub.git && git remote add hub ../hub.git && git push hub HEAD", "hub"),
    ("dvc exp push hub higher", "Pushed experiment higher"),
    ("git clone . ../second && cd ../second && dvc pull", "files fetched"),
    ("cd ../second && dvc repro --allow-missing", "Stage 'report' didn't change, skipping"),
    ("cd ../second && dvc exp pull ../hub.git higher && dvc exp list --all-commits", "higher"),
    ("dvc list . data/evaluate/digits", "metrics.json"),
    ("dvc get . data/evaluate/digits/metrics.json --out ../got.json && cat ../got.json", "student"),
    ("git init ../other && cd ../other && dvc init && dvc import ../digits data/student/digits",
     "Importing"),
    ("rm -r data/student && dvc checkout", "data/student/digits/student.safetensors"),
    ("dvc exp remove higher low", "Removed experiments"),
    ("dvc gc --workspace --force", "objects from repo cache"),
    ("dvc fetch", "Everything is up to date."),
    ("python3 -m pd_core doctor", "ok      MLflow"),
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a project, and run its stages in an experiment of DVC's queue."""
    folder = tmp_path_factory.mktemp("user")
    photos.write(folder / "photos", labelled=6, test=6, unlabelled=20)
    with pytest.MonkeyPatch.context() as change:
        for variable in ("PD_DATA_ROOT", "PD_MIRROR", "PD_MLFLOW_EXPERIMENT"):
            change.delenv(variable, raising=False)
        images = [f"--{kind}=photos/{kind}" for kind in ("labelled", "unlabelled", "test")]
        clips = ("--teacher", "embedded-teacher", "--student", "embedded-student")
        assert promptkd(folder, "new", NAME, *images, *clips).returncode == 0
        project = folder / NAME
        params = project / "params.yaml"
        text = params.read_text()
        for long, short in SHORT.items():
            assert long in text
            text = text.replace(long, short)
        params.write_text(text)
        (project / ".env").write_text("PD_MLFLOW_EXPERIMENT=sweep\n")
        commit(project)
        given = f"++datasets.{NAME}.student.lr=0.002"
        typed(project, "exp", "run", "--queue", "--name", "low", "-S", given)
        typed(project, "exp", "run", "--run-all")
        yield project


def typed(project: Path, *arguments: str) -> str:
    done = dvc(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_experiment_of_the_queue_is_in_mlflow_with_its_name(project: Path) -> None:
    shown = json.loads(typed(project, "exp", "show", "--json"))
    assert "low" in json.dumps(shown)
    client = tracking.client(f"sqlite:///{project / 'mlflow.db'}")
    (experiment,) = [
        one for one in client.search_experiments() if one.name == f"sweep-{NAME}"
    ]  # its first part is of `.env`
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"low", NAME, f"teacher@{NAME}", f"evaluate@{NAME}", "report"} <= runs.keys()
    assert {run.data.tags["dvc_experiment"] for run in runs.values()} == {"low"}
    parent = runs[NAME].data.tags["mlflow.parentRunId"]
    assert parent == runs["low"].info.run_id
    assert runs[f"student@{NAME}"].data.params["student.lr"] == "0.002"


def test_its_registered_student_stays(project: Path, tmp_path: Path) -> None:
    done = promptkd(project, "predict", NAME, "../photos/test", "--out", str(tmp_path / "a.csv"))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 4 * 6


def test_applied_it_has_one_other_parameter_plots_and_a_model_to_get(
    project: Path, tmp_path: Path
) -> None:
    typed(project, "exp", "apply", "low")
    assert list(json.loads(typed(project, "params", "diff", "--json"))["params.yaml"]) == [
        f"datasets.{NAME}.student.lr"
    ]
    compared = promptkd(project, "compare")
    assert compared.returncode == 0, compared.stderr
    assert "student.lr" in compared.stdout
    drawn = json.loads(typed(project, "plots", "diff", "--json"))
    assert f"data/student/{NAME}/history.json" in drawn["data"]
    assert "learning_curves" not in json.dumps(drawn.get("errors", ""))

    commit(project)
    folder = tmp_path / NAME
    vectors = f"data/class_vectors/{NAME}/class_vectors.safetensors"
    typed(tmp_path, "get", str(project), f"data/student/{NAME}")
    done = promptkd(tmp_path, "predict", NAME, str(project / "../photos/test"))
    assert done.returncode == 2
    assert f"dvc get <repository> {vectors} -o {NAME}" in done.stderr
    typed(tmp_path, "get", str(project), vectors, "--out", NAME)
    assert sorted(file.name for file in folder.iterdir()) == [
        "class_vectors.safetensors", "history.json", "student.safetensors"
    ]  # fmt: skip
    done = promptkd(tmp_path, "predict", NAME, str(project / "../photos/test"))
    assert done.returncode == 0, done.stderr
    assert "digit zero" in done.stdout


def test_an_afternoon_with_dvc(project: Path) -> None:
    (project.parent / "typed.txt").write_text(typed_commands.table(project, AFTERNOON))
