"""An afternoon of a user of curl with `promptkd serve`; `pytest -s` shows the table."""

import os
from pathlib import Path

import pytest
from conftest import TinyStudent
from serving import portable, served_project, serving
from shell import shell

KEY = "0123456789abcdef"
IMAGE = '-H "Content-Type: image/png" --data-binary @picture.png'
STDIN = "--data-binary @- $URL/predict"
BEST = '"predictions":\\[{"name":"(\\w+)"'
BASE64 = '{\\"images\\": [\\"$(base64 -w 0 picture.png)\\"]}'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    tiny_student: TinyStudent,
    picture: bytes,
) -> Path:
    folder = tmp_path_factory.mktemp("project")
    served_project(folder, empty_database, portable(tiny_student), picture)
    (folder / "picture.png").write_bytes(picture)
    (folder / "text.txt").write_text("no image")
    (folder / "large.png").write_bytes(bytes(200_000))
    return folder


def test_every_command_of_an_afternoon_with_curl_does_what_it_should(project: Path) -> None:
    with (
        serving(project, "--most-bytes", "100000", "--most-pictures", "2") as service,
        shell(project, {**os.environ, "URL": service.url}) as run,
    ):
        run("curl -sI $URL/health", "200 OK.*content-length: 18")
        run("curl -s $URL/health", '{"status":"alive"}')
        run("curl -s $URL/ready", '{"status":"ready"}')
        run("curl -s $URL/model", '"name":"promptkd-greek","version":1')
        run("curl -s $URL/openapi.json | python3 -m json.tool", '"/predict/batch"')
        run("curl -s $URL/", "<title>")
        run("curl -si -X OPTIONS $URL/predict", "204.*allow: OPTIONS, POST")

        best = run("curl -s --data-binary @picture.png $URL/predict", BEST)
        same = f'"name":"{best}"'
        run(f"curl -s {IMAGE} $URL/predict?top=2", same)
        run("curl -s -F file=@picture.png $URL/predict", same)
        run("curl -s -T picture.png -X POST $URL/predict", same)
        run(f"gzip -c picture.png | curl -s -H 'Content-Encoding: gzip' {STDIN}", same)
        run("curl -s -F files=@picture.png -F files=@picture.png $URL/predict/batch", same)
        run(f'curl -s --json "{BASE64}" $URL/predict/batch', same)

        run("curl -s -d @text.txt $URL/predict", "cannot be read.*send a file of")
        run("curl -s -X POST $URL/predict", "0 bytes")
        run("curl -s -F picture=@picture.png $URL/predict", "no file in its field 'file'")
        run(f"curl -s {IMAGE} $URL/predict?top=0", "top = 0")
        run("curl -si -H 'Content-Type: text/csv' -d 1,2 $URL/predict", "415.*text/csv.*image/png")
        run(f"curl -si -H 'Content-Encoding: br' {IMAGE} $URL/predict", "415.*'br'.*send gzip")
        run("curl -si --data-binary @large.png $URL/predict", "413.*more than 100000 bytes")
        run('curl -s --json \'{"images": ["?"]}\' $URL/predict/batch', "image 0 is not base64")
        run("curl -s --json nonsense $URL/predict/batch", "not JSON")
        run("curl -s --json '[]' $URL/predict/batch", r'send {\\"images\\"')
        run("curl -si $URL/predict", "405.*allow: OPTIONS, POST.*GET is not supported")
        run("curl -si -X DELETE $URL/model", "405.*DELETE is not supported here")
        run("curl -si $URL/nothing", "404.*Not Found")

        run("curl -s $URL/metrics", r'promptkd_requests_total{route="/predict",status="200"} 5.0')
        run("curl -s $URL/monitoring", '"verdict":"too few"')


def test_every_command_on_a_network_does_what_it_should(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_SERVE_API_KEYS", KEY)
    origin = "https://app.example.org"
    auth = f'-H "Authorization: Bearer {KEY}"'
    ask = "-H 'Access-Control-Request-Method: POST'"
    with (
        serving(project, "--per-minute", "6", "--cors-origin", origin) as service,
        shell(project, {**os.environ, "URL": service.url}) as run,
    ):
        run("curl -s $URL/health", "alive")
        run(f"curl -si -X OPTIONS -H 'Origin: {origin}' {ask} $URL/predict", f"200 OK.*{origin}")
        run(f"curl -si -X OPTIONS -H 'Origin: https://x.org' {ask} $URL/predict", "400")
        run(f"curl -si {IMAGE} $URL/predict", "401.*www-authenticate: Bearer.*key is required")
        run(f"curl -si {IMAGE} -H 'Authorization: Bearer x' $URL/predict", "401.*key is unknown")
        run(f"curl -s {IMAGE} {auth} $URL/predict", BEST)
        run("for guess in {1..20}; do curl -s $URL/model; done", "more than 6 requests in a minute")
        run(f"curl -s {IMAGE} {auth} $URL/predict", BEST)
