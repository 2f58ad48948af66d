"""The parameter `dataset` of the flows is one of the data sets that there are."""

from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.utilities.callables import parameter_schema

from flows import datasets
from flows.datasets import DataSet
from pd_core.core.errors import UnknownName

ROOT = Path(__file__).parents[2]


def _profiles(folder: Path, root: str, paper: str) -> Path:
    (folder / "paper").mkdir()
    (folder / "params.yaml").write_text(root)
    (folder / "paper" / "params.yaml").write_text(paper)
    return folder


def test_a_server_offers_the_names_of_both_profiles_as_they_stand_there() -> None:
    @flow
    def anything(dataset: DataSet) -> None: ...

    files = [ROOT / "params.yaml", ROOT / "paper" / "params.yaml"]
    rows = [list(yaml.safe_load(file.read_text())["datasets"]) for file in files]
    offered = parameter_schema(anything).properties["dataset"]["enum"]
    assert offered == rows[0] + rows[1]


def test_a_name_that_both_profiles_have_is_offered_once(tmp_path: Path) -> None:
    root = _profiles(tmp_path, "datasets: {b: {}, a: {}}", "datasets: {c: {}, b: {}}")
    found = datasets.read_profiles(root)
    assert list(found.items()) == [("b", Path()), ("a", Path()), ("c", Path("paper"))]


@pytest.mark.parametrize("content", ["datasets: 1", "other: {}", "- a", "{", "\x00", ""])
def test_where_a_file_cannot_be_read_any_name_may_be_tried(tmp_path: Path, content: str) -> None:
    root = _profiles(tmp_path, "datasets: {a: {}}", content)
    assert datasets.read_profiles(root) == {}
    assert datasets.type_of(()) is str
    assert datasets.read_profiles(tmp_path / "nowhere") == {}


def test_another_name_is_refused_with_a_guess() -> None:
    datasets.check_name("embedded_greek")
    with pytest.raises(UnknownName, match="did you mean 'embedded_greek'"):
        datasets.check_name("embedded_greec")


def test_the_paper_has_its_own_folder_unless_one_is_in_it_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert datasets.profile_of("embedded_greek") == Path()
    assert datasets.profile_of("dtd") == Path("paper")
    monkeypatch.chdir(ROOT / "paper")
    assert datasets.profile_of("dtd") == Path()
