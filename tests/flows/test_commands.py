"""Server checks and data-set names of the flows' commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow, flow
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect_home import ROOT, run_flow

from flows import benchmark, commands
from flows.commands import DataSet, PaperDataSet, RootDataSet
from flows.distill import distill_dataset
from pd_core.core.errors import PdError, UnknownName

NOWHERE = "http://127.0.0.1:9/api"  # the discard port; nothing listens there


def _profiles(folder: Path, root: str, paper: str) -> Path:
    (folder / "paper").mkdir()
    (folder / "params.yaml").write_text(root)
    (folder / "paper" / "params.yaml").write_text(paper)
    return folder


def offered(kind: Any) -> list[str] | None:
    """Return the names that a server offers for a parameter of this type."""

    @flow
    def anything(dataset: kind) -> None: ...

    names: list[str] | None = parameter_schema(anything).properties["dataset"].get("enum")
    return names


def test_a_server_offers_the_names_of_a_profile_or_of_both() -> None:
    files = [ROOT / "params.yaml", ROOT / "paper" / "params.yaml"]
    names = [list(yaml.safe_load(file.read_text())["datasets"]) for file in files]
    assert offered(DataSet) == names[0] + names[1]
    assert [offered(RootDataSet), offered(PaperDataSet)] == names


def test_a_deployment_offers_the_names_of_the_profile_that_it_runs() -> None:
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        made: Flow[Any, Any] = load_flow_from_entrypoint(deployment["entrypoint"])
        schema = json.dumps(parameter_schema(made).properties)
        if made.name == "benchmark":
            assert ('"dtd"' in schema) is (deployment["name"] == "paper")
            assert ('"embedded_greek"' in schema) is (deployment["name"] == "quickstart")
        elif "dataset" in made.parameters.properties:
            assert '"dtd"' in schema
            assert '"embedded_greek"' in schema


def test_a_name_of_both_profiles_is_offered_once(tmp_path: Path) -> None:
    root = _profiles(tmp_path, "datasets: {b: {}, a: {}}", "datasets: {c: {}, b: {}}")
    folders = commands.read_profiles(root)
    assert list(folders.items()) == [("b", Path()), ("a", Path()), ("c", Path("paper"))]


@pytest.mark.parametrize("content", ["datasets: 1", "other: {}", "- a", "{", "\x00", ""])
def test_if_a_file_cannot_be_read_any_name_is_accepted(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _profiles(tmp_path, "datasets: {a: {}}", content)
    assert commands.read_profiles(root) == commands.read_profiles(tmp_path / "nowhere") == {}
    monkeypatch.setattr(commands, "PROJECT", root)
    assert offered(DataSet) is None
    assert offered(RootDataSet) == ["a"]


def test_another_name_is_refused_with_a_guess() -> None:
    commands.check_name("embedded_greek")
    with pytest.raises(UnknownName, match="did you mean 'embedded_greek'"):
        commands.check_name("embedded_greec")


def test_the_paper_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert commands.profile_of("embedded_greek") == Path()
    assert commands.profile_of("dtd") == Path("paper")
    monkeypatch.chdir(ROOT / "paper")
    assert commands.profile_of("dtd") == Path()


def test_a_run_of_a_data_set_is_of_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(profile_dir: Path) -> None:
        raise PdError(f"in {profile_dir}")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("flows.pipeline.read_graph", refuse)
    assert distill_dataset.fn("embedded_greek").message == "in ."
    assert distill_dataset.fn("dtd").message == "in paper"
    assert distill_dataset.fn("dtd", Path("protocols")).message == "in protocols"


def test_a_server_that_does_not_respond_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.check_server(None)
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        assert benchmark.main([]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert NOWHERE in stderr
    assert stderr.count("\n") == 1


def test_our_setting_of_the_server_goes_before_prefects_own(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PD_PREFECT_API_URL={NOWHERE}\n")
    done = run_flow("benchmark", tmp_path, PREFECT_API_URL="http://127.0.0.1:10/api")
    assert done.returncode == 2
    assert NOWHERE in done.stderr


def test_settings_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PD_DEVICE=\xff\xfe")
    done = run_flow("benchmark", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: '.env' cannot be read")
    assert done.stderr.count("\n") == 1
