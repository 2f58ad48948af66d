"""An afternoon of a user of Prefect, with Prefect's own commands; `pytest -s` shows the table."""

from pathlib import Path

import photos
import pytest
from agents import Server, environment, running, waiting_project
from shell import shell
from waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKER = "prefect worker start --pool promptkd --run-once"


def test_every_command_of_an_afternoon_with_prefect_does_what_it_should(tmp_path: Path) -> None:
    code, port = waiting_project(tmp_path / "code"), free_port()
    photos.write(tmp_path / "photos")
    home, api = tmp_path / "home", f"http://127.0.0.1:{port}/api"
    variables = {
        **environment(code, PREFECT_HOME=str(home), PREFECT_API_URL=api, COLUMNS="200"),
        "PREFECT_CLI_PROMPT": "false",
    }
    start = ["prefect", "server", "start", "--port", str(port)]
    server = Server(api, home, code)
    with (
        running(start, code, tmp_path / "server.log", PREFECT_HOME=str(home)) as process,
        shell(code, variables) as run,
    ):
        wait_until(server.is_up, "the server is up", process)

        run("prefect version", r"Version: +3\.")
        run("prefect config view", f"PREFECT_API_URL='{api}'")
        run("prefect work-pool create promptkd --type process", "Created work pool 'promptkd'")
        run("prefect work-pool ls", "promptkd.*process")
        run("prefect deploy --all", "benchmark/quickstart.*refresh/nightly.*monitor/hourly")
        run("prefect deployment ls", "distill-dataset/gpu")
        run("prefect deployment inspect benchmark/quickstart", "flows.benchmark.benchmark")
        run("prefect work-queue ls --pool promptkd", "gpu")
        run("prefect work-pool inspect promptkd", "type='process'")

        # A data set, by the worker that `prefect deploy` advises.
        gpu = "prefect deployment run distill-dataset/gpu"
        first = run(f"{gpu} -p dataset=embedded_arrows", r"UUID: (\S+)")
        run(f"{gpu} -p dataset=embedded_aros", "embedded_aros", status=1)
        run(f"{WORKER} -q gpu", "5 stages of embedded_arrows are up to date")
        run("prefect flow-run ls", "distill-dataset.*COMPLETED")
        run(f"prefect flow-run inspect {first}", "COMPLETED")
        run(f"prefect flow-run logs {first}", "Running stage 'student@embedded_arrows'")
        run("prefect artifact ls", "stages-embedded-arrows")
        run("prefect artifact inspect stages-embedded-arrows", "computed")

        # The benchmark, a run that is cancelled, and the schedule.
        run(
            "prefect deployment run benchmark/quickstart -p 'datasets=[\"embedded_latin\"]'",
            "Created flow run",
        )
        run(f"{WORKER} -q coordinator", "1 data sets are up to date")
        late = run(f"{gpu} -p dataset=embedded_greek --start-in '1 hour'", r"UUID: (\S+)")
        run(f"prefect flow-run cancel {late}", "was successfully scheduled for cancellation")
        nightly = "prefect deployment schedule {} refresh/nightly"
        schedule = run(nightly.format("ls"), r"│ ([0-9a-f-]{36})")
        run(f"{nightly.format('resume')} {schedule}", "Resumed")
        run(nightly.format("ls"), r"0 2 \* \* \*.*True")
        run(f"{nightly.format('pause')} {schedule}", "Paused")

        # A data set of the user's own.
        run("promptkd data add mine --labelled ../photos/labelled", "mine")
        run(f"{gpu} -p dataset=mine", "mine", status=1)
        run("prefect deploy --all", "distill-dataset/gpu")
        run(f"{gpu} -p dataset=mine", "Created flow run")
