"""Server checks and data-set names of the flows' commands."""

from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect_home import ROOT, run_flow

from flows import benchmark, commands
from flows.commands import DataSet
from pd_core.core.errors import UnknownName

NOWHERE = "http://127.0.0.1:9/api"  # the discard port; nothing listens there


def _profiles(folder: Path, root: str, paper: str) -> Path:
    (folder / "paper").mkdir()
    (folder / "params.yaml").write_text(root)
    (folder / "paper" / "params.yaml").write_text(paper)
    return folder


def test_a_server_offers_the_names_of_both_profiles() -> None:
    @flow
    def anything(dataset: DataSet) -> None: ...

    files = [ROOT / "params.yaml", ROOT / "paper" / "params.yaml"]
    names = [list(yaml.safe_load(file.read_text())["datasets"]) for file in files]
    assert parameter_schema(anything).properties["dataset"]["enum"] == names[0] + names[1]


def test_a_name_of_both_profiles_is_offered_once(tmp_path: Path) -> None:
    root = _profiles(tmp_path, "datasets: {b: {}, a: {}}", "datasets: {c: {}, b: {}}")
    folders = commands.read_profiles(root)
    assert list(folders.items()) == [("b", Path()), ("a", Path()), ("c", Path("paper"))]


@pytest.mark.parametrize("content", ["datasets: 1", "other: {}", "- a", "{", "\x00", ""])
def test_if_a_file_cannot_be_read_any_name_is_accepted(tmp_path: Path, content: str) -> None:
    root = _profiles(tmp_path, "datasets: {a: {}}", content)
    assert commands.read_profiles(root) == commands.read_profiles(tmp_path / "nowhere") == {}
    assert commands.type_of(()) is str


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
