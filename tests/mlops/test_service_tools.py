"""Tools that others keep use `promptkd serve`: schemathesis, a generated client, promtool."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TinyStudent
from serving import Running, portable, served_project, serving

KEY = "0123456789abcdef"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    tiny_student: TinyStudent,
    picture: bytes,
) -> Iterator[Running]:
    """Return a service that requires a key."""
    folder = tmp_path_factory.mktemp("project")
    project = served_project(folder, empty_database, portable(tiny_student), picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PD_SERVE_API_KEYS", KEY)
        with serving(project) as running:
            yield running


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command, which has to succeed; return its output."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("examples", "least"),
    [pytest.param(30, 150, marks=pytest.mark.ci), pytest.param(2500, 5000)],
    ids=["some", "5000 requests"],
)
def test_schemathesis_finds_no_failure_by_any_check(
    service: Running, tmp_path: Path, examples: int, least: int
) -> None:
    output = run(
        tmp_path,
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
        *("--checks", "all", "--max-examples", str(examples), "--seed", "1", "--no-color"),
        *("--header", f"Authorization: Bearer {KEY}"),
        SCHEMATHESIS_HOOKS="image_strategies",
        PYTHONPATH=str(SUPPORT),
    )

    (cases,) = re.findall(r"(\d+) generated, \1 passed", output)
    assert int(cases) >= least, output


CLIENT = """
import sys
from client import AuthenticatedClient
from client.api.default import predict, predict_batch
from client.models import PredictBatchFilesBody, PredictFilesBody
from client.types import File

url, key, path = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)

def image():
    return File(payload=open(path, "rb"), file_name="picture.png")

one = predict.sync(client=client, body=PredictFilesBody(file=image()), top=2)
many = predict_batch.sync(client=client, body=PredictBatchFilesBody(files=[image(), image()]))
refused = predict.sync(client=client, body=PredictFilesBody(file=image()), top=0)
print(one.model, one.version, len(one.predictions), one.predictions[0].name)
print(len(many.predictions), many.predictions[1][0].name)
print(type(refused).__name__, refused.detail)
"""


@pytest.mark.skipif(
    shutil.which("openapi-python-client") is None, reason="`make test-client` installs it"
)
def test_a_generated_client_sends_an_image_and_reads_the_response(
    service: Running, tmp_path: Path, picture: bytes
) -> None:
    (tmp_path / "picture.png").write_bytes(picture)
    response = service.post("/predict", picture, headers=AUTHORIZED)
    best = response.json()["predictions"][0]["name"]
    generator = ("openapi-python-client", "generate", "--output-path", "client", "--meta", "none")
    run(tmp_path, *generator, "--url", f"{service.url}/openapi.json")
    output = run(tmp_path, sys.executable, "-c", CLIENT, service.url, KEY, "picture.png")

    assert output.splitlines()[:2] == [f"promptkd-greek 1 2 {best}", f"2 {best}"]
    assert output.splitlines()[2].startswith("Problem top = 0")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's `prometheus` has it")
def test_promtool_has_nothing_to_say_about_the_metrics(service: Running, picture: bytes) -> None:
    service.post("/predict", picture, headers=AUTHORIZED)
    text = service.get("/metrics", headers=AUTHORIZED).text

    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
