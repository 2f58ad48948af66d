"""The image and the services of containers. Nothing here needs a daemon."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from container_files import LOGIN, OWN, ROOT, compose, instructions, pairs
from documents import TEXT
from typer.main import get_command

from pd_core.cli.verbs import app
from pd_core.pipeline.settings import TELEMETRY_OFF, load_settings, variable_names

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE = instructions(DOCKERFILE)
LAST = max(each.stage for each in IMAGE)
COMPOSE = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, Any] = compose(LOGIN)["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == OWN]
PROGRAMS = Path(sys.executable).parent


def arguments(word: str, stage: int | None = None) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile, in all stages or in one."""
    return [each.rest for each in IMAGE if each.word == word and stage in (None, each.stage)]


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# The image.


def test_every_exception_of_the_linter_has_its_reason_above() -> None:
    lines = DOCKERFILE.splitlines()
    ignores = [number for number, line in enumerate(lines) if "hadolint ignore=" in line]

    assert run(str(PROGRAMS / "hadolint"), "Dockerfile", cwd=ROOT) == ""
    assert all(re.match(r"# [A-Z].*\.$", lines[number - 1]) for number in ignores)


def test_the_image_is_built_on_a_version_and_on_nothing_else() -> None:
    base = next(rest for rest in arguments("ARG", -1) if rest.startswith("BASE="))
    stages = [rest.partition(" AS ")[2] for rest in arguments("FROM")]

    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-[a-z]+", base)
    assert {rest.partition(" ")[0] for rest in arguments("FROM")} <= {"${BASE}", *stages}


def test_dependencies_are_installed_at_their_pinned_versions_and_before_the_code() -> None:
    last = [each for each in IMAGE if each.stage == LAST]
    installs = [n for n, each in enumerate(last) if "pip install" in each.rest]
    code = next(n for n, each in enumerate(last) if "/srv/promptkd ./" in each.rest)

    assert len(installs) == DOCKERFILE.count("pip install")
    assert all("pip install -c constraints.txt" in last[n].rest for n in installs)
    assert max(installs) < code


def test_no_address_is_written_into_the_files() -> None:
    found = re.findall(r"https?://([\w.-]+)", DOCKERFILE + COMPOSE)

    assert set(found) <= {*SERVICES, "127.0.0.1"}


def test_the_builder_gets_the_history_and_copies_files_of_git_only() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    words = [rest.split() for rest in arguments("COPY")]
    from_context = [each[:-1] for each in words if not each[0].startswith("--from")]
    copied = [word for each in words for word in each[:-1] if word.startswith("/srv/promptkd/")]

    assert [line for line in rules if not line.startswith("#")] == ["*", "!.git"]
    assert from_context == [[".git"]]
    assert copied
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    assert {word.removeprefix("/srv/promptkd/") for word in copied} <= set(tracked)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a file, and with what must not get into an image."""
    folder = tmp_path / "project"
    folder.mkdir()
    run("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    run("git", "config", "user.name", "nobody", cwd=folder)
    run("git", "config", "user.email", "nobody@example.org", cwd=folder)
    run("git", "remote", "add", "origin", "https://me:hidden-word@example.org", cwd=folder)
    for content in ("hidden-word", "committed"):
        (folder / "file").write_text(content)
        run("git", "add", "file", cwd=folder)
        amend = ["--amend"] if content == "committed" else []
        run("git", "commit", "--quiet", *amend, "-m", "file", cwd=folder)
    (folder / ".env").write_text("hidden-word")
    (folder / "file").write_text("not committed")
    return folder


@pytest.mark.parametrize("where", ["main", "--detach"])
def test_the_image_holds_a_clean_clone_of_the_last_commit(
    project: Path, tmp_path: Path, where: str
) -> None:
    run("git", "checkout", "--quiet", where, cwd=project)
    (command,) = arguments("RUN", 1)
    clone = tmp_path / "clone"
    command = command.replace("/context", str(project)).replace("/srv/promptkd", str(clone))

    run("sh", "-c", command, cwd=tmp_path)

    assert run("git", "rev-parse", "HEAD", cwd=clone) == run(
        "git", "rev-parse", "HEAD", cwd=project
    )
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert run("git", "remote", cwd=clone) == ""
    assert [path.name for path in clone.iterdir() if path.name != ".git"] == ["file"]
    objects = run("git", "cat-file", "--batch-all-objects", "--batch", cwd=clone)
    texts = [path.read_bytes() for path in clone.rglob("*") if path.is_file()]
    assert "committed" in objects
    assert "hidden-word" not in objects
    assert not [text for text in texts if b"hidden-word" in text]


def test_labels_variables_and_user_of_the_image() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = pairs(" ".join(arguments("LABEL", LAST)))

    assert labels["org.opencontainers.image.version"] == package["version"]
    assert labels["org.opencontainers.image.licenses"] == package["license"]
    assert TELEMETRY_OFF.items() <= pairs(" ".join(arguments("ENV", LAST))).items()
    assert arguments("USER", LAST) == ["1000:1000"]
    assert any("useradd" in rest and "--uid 1000" in rest for rest in arguments("RUN", LAST))


def test_a_program_of_the_image_gets_the_signals_itself() -> None:
    assert isinstance(json.loads(arguments("CMD", LAST)[0]), list)
    assert not arguments("ENTRYPOINT") + arguments("SHELL")


# The services.


@pytest.mark.parametrize("name", LOGIN)
def test_without_a_login_of_the_store_nothing_starts(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose(dict.fromkeys(LOGIN.keys() - {name}, "x"))


def test_every_secret_comes_from_the_environment() -> None:
    names = {*LOGIN, "PD_SERVE_API_KEYS"}  # which may be left out
    secrets = [
        value
        for service in compose({name: f"<{name}>" for name in names})["services"].values()
        for variable, value in service["environment"].items()
        if re.search("KEY|SECRET|PASSWORD|TOKEN|AUTH", variable)
    ]

    assert secrets
    assert set(secrets) == {f"<{name}>" for name in names}


def test_other_images_have_a_version_and_ours_is_built_once() -> None:
    (builder,) = [name for name in SERVICES if "build" in SERVICES[name]]
    declared = {rest.partition("=")[0] for rest in arguments("ARG")}

    assert SERVICES[builder]["image"] == OWN
    assert SERVICES[builder]["build"]["args"].keys() <= declared
    for service in (each for each in SERVICES.values() if each["image"] != OWN):
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])


def test_only_the_agent_for_gpus_asks_for_one() -> None:
    assert {name for name, service in SERVICES.items() if "deploy" in service} == {"agent-gpu"}


@pytest.mark.parametrize("name", [name for name, each in SERVICES.items() if "ports" in each])
def test_ports_are_open_to_this_machine_only_and_checked(name: str) -> None:
    ports = [re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in SERVICES[name]["ports"]]
    check = " ".join(SERVICES[name]["healthcheck"]["test"])

    assert all(port and f"http://127.0.0.1:{port[1]}/" in check for port in ports)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting_and_its_value_is_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {key: value for key, value in SERVICES[name]["environment"].items() if "PD_" in key}
    monkeypatch.chdir(tmp_path)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)

    assert set(given) <= set(variable_names())
    load_settings()


def test_every_service_starts_again_and_hands_signals_on() -> None:
    for service in SERVICES.values():
        assert (service["restart"], service["init"]) == ("unless-stopped", True)


@pytest.mark.parametrize("name", SERVICES)
def test_every_address_is_that_of_a_service_which_is_waited_for(name: str) -> None:
    values = SERVICES[name].get("environment", {}).values()
    addresses = [urlsplit(value) for value in values if value.startswith("http://")]
    others = [each for each in addresses if each.hostname != "127.0.0.1"]

    for address in others:
        assert address.hostname is not None
        service = SERVICES[address.hostname]
        assert service["ports"] == [f"127.0.0.1:{address.port}:{address.port}"]
        assert SERVICES[name]["depends_on"][address.hostname] == {"condition": "service_healthy"}
    assert set(SERVICES[name].get("depends_on", ())) == {each.hostname for each in others}


def test_the_server_of_flows_is_well_once_it_has_made_the_last_of_its_deployments() -> None:
    last = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][-1]
    flow = last["entrypoint"].rpartition(".")[2].replace("_", "-")
    check = " ".join(SERVICES["prefect"]["healthcheck"]["test"])

    assert f"/api/deployments/name/{flow}/{last['name']}'" in check


def volumes(name: str) -> Iterator[tuple[str, str]]:
    """Yield name, which may be empty, and folder of a service's volumes."""
    for volume in SERVICES[name].get("volumes", ()):
        source, _, target = volume.rpartition(":")
        yield source, target


def test_every_volume_is_declared_used_and_over_a_folder_of_the_user() -> None:
    made = " ".join(rest for rest in arguments("RUN", LAST) if "--owner=promptkd" in rest).split()
    (mkdir,) = (rest for rest in arguments("RUN", LAST) if rest.startswith("mkdir -p"))
    inside = [f"/srv/promptkd/{folder}" for folder in mkdir.split()[2:]]

    used = {source for name in SERVICES for source, _ in volumes(name) if source}
    assert used == set(compose(LOGIN)["volumes"])
    assert {target for name in OURS for _, target in volumes(name)} <= {*made, *inside}


@pytest.mark.parametrize("name", ["agent", "agent-gpu"])
def test_agents_can_be_many_and_only_the_profile_for_gpus_has_a_gpu(name: str) -> None:
    agent = SERVICES[name]

    assert {source for source, _ in volumes(name)} == {"", "pictures"}
    assert not {"container_name", "hostname", "ports"} & set(agent)
    assert ("deploy" in agent) == (agent.get("profiles") == ["gpu"]) == (name == "agent-gpu")


@pytest.mark.parametrize("line", re.findall("docker compose (.+)", COMPOSE + TEXT))
def test_every_documented_command_names_services_and_profiles(line: str) -> None:
    profiles = {profile for each in SERVICES.values() for profile in each.get("profiles", ())}
    services = re.findall(
        r"(?:exec|run)(?: --[a-z]+| -[A-Za-z]+)* ([a-z-]+)", line.split(" prefect ")[0]
    )
    scaled = re.findall(r"--scale ([a-z-]+)=", line)

    assert {*services, *scaled} <= set(SERVICES)
    assert set(re.findall(r"--profile ([a-z]+)", line)) <= profiles


DEFAULT = tuple(json.loads(arguments("CMD", LAST)[0]))
COMMANDS = {DEFAULT, *(tuple(SERVICES[name]["command"]) for name in OURS if name != "mlflow")}


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_every_command_exists_with_its_options(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    match command:
        case ["promptkd", verb, *words]:
            get_command(app).commands[verb].make_context(verb, words)  # type: ignore[attr-defined]
        case ["python", "-m", module, *words]:
            with pytest.raises(SystemExit) as end:
                importlib.import_module(module).main(["--help"])
            assert end.value.code == 0
            known = capsys.readouterr().out.split()
            assert {word for word in words if word.startswith("--")} <= {*known}
        case _:
            pytest.fail(f"what is {command}?")
