"""MLflow's own commands and client in a project that was moved."""

import shutil
from pathlib import Path

import pytest
import typed_commands
from conftest import TinyStudent
from serving import champion, new_project, portable
from tracked import stage
from waiting import free_port

_UP = "--retry 250 --retry-delay 1 --retry-connrefused --silent"
_JSON = "--header 'Content-Type: application/json' --data @../model/serving_input_example.json"
_MODEL = "--model-uri models:/promptkd-greek@champion --env-manager local"


def _python(code: str) -> str:
    return f'python3 -c "import mlflow; client = mlflow.MlflowClient(); {code}"'


# Commands of MLflow's own documentation, with a text that each prints.
AFTERNOON = (
    ("python3 -m pd_core registry list", "promptkd-greek"),  # corrects the paths of a moved project
    ("mlflow experiments search", "/moved/mlruns/promptkd-quickstart"),
    ("mlflow experiments csv --experiment-id 1", "FINISHED"),
    ("mlflow runs list --experiment-id 1", "teacher@greek"),
    ("mlflow runs describe --run-id $RUN", '"dataset": "greek"'),
    ("mlflow artifacts list --run-id $RUN", "lineage.json"),
    ("cat $(mlflow artifacts download --run-id $RUN --artifact-path lineage.json)", "git_commit"),
    ("mlflow artifacts download --artifact-uri models:/promptkd-greek@champion "
     "--dst-path ../model && ls ../model", "MLmodel"),
    (f"mlflow models predict {_MODEL} --input-path ../model/serving_input_example.json",
     '"probabilities"'),
    (f"timeout 300 mlflow models serve {_MODEL} --port $PORT & "
     f"curl {_UP} {_JSON} http://127.0.0.1:$PORT/invocations; kill $!; wait", '"probabilities"'),
    ("timeout 300 mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1 --port $PORT & "
     f"curl {_UP} http://127.0.0.1:$PORT/api/2.0/mlflow/artifacts/list?run_id=$RUN; kill $!; wait",
     "lineage.json"),
    (_python("print(mlflow.models.get_model_info('models:/promptkd-greek/1').signature)"),
     "'image': string (required)"),
    (_python("print(client.search_model_versions('name = \\'promptkd-greek\\''))"), "distilled"),
    (_python("print(mlflow.search_runs(['1'], 'tags.stage = \\'teacher\\'').shape)"), "(1, "),
    (_python("client.set_registered_model_alias('promptkd-greek', 'stable', 1);"
             "client.set_model_version_tag('promptkd-greek', 1, 'reviewed', 'yes');"
             "print(client.get_model_version_by_alias('promptkd-greek', 'stable').tags)"),
     "'reviewed': 'yes'"),
    (_python("model = mlflow.pyfunc.load_model('models:/promptkd-greek@stable');"
             "print(model.predict(model.input_example, params={'top': 2}))"), "probabilities"),
    ("mlflow runs delete --run-id $RUN", "has been deleted"),
    ("mlflow runs restore --run-id $RUN", "has been restored"),
    ("mlflow experiments delete --experiment-id 1", "has been deleted"),
    ("mlflow experiments restore --experiment-id 1", "has been restored"),
    ("mlflow gc --backend-store-uri sqlite:///mlflow.db", ""),
    ("mlflow db upgrade sqlite:///mlflow.db", ""),
    ("python3 -m pd_core registry show greek@stable", "reviewed"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("no_onnx")
def test_an_afternoon_with_mlflow(
    tmp_path: Path, empty_database: Path, tiny_student: TinyStudent, picture: bytes
) -> None:
    store = new_project(tmp_path / "first", empty_database)
    with stage(store) as run:
        pass
    champion(store, portable(tiny_student), picture)
    project = Path(shutil.move(tmp_path / "first", tmp_path / "moved"))
    environment = {
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PORT": str(free_port()),
        "RUN": run.run_id,
    }
    (tmp_path / "typed.txt").write_text(typed_commands.table(project, AFTERNOON, **environment))
