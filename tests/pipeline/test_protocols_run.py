"""The four protocols, run for a moment each with two seeds by DVC in a clone."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_jobs import clone, dvc, run, shorten

from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import FOLDER

NAME, VARIANT = "embedded_digits", "embedded_symbols_neon"
DATASETS = {
    Protocol.BASE_TO_NOVEL: NAME,
    Protocol.CROSS_DATASET: NAME,
    Protocol.DOMAIN_GENERALISATION: VARIANT,
    Protocol.ALL_CLASSES: NAME,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything once."""
    folder = clone(tmp_path_factory.mktemp("protocols") / "clone")
    shorten(folder, NAME, "embedded_symbols")
    file = folder / FOLDER / "params.yaml"
    yaml = YAML(typ="safe")
    params: dict[str, Any] = yaml.load(file)
    params["seeds"] = [1, 2]
    params["datasets"] = {str(protocol): [name] for protocol, name in DATASETS.items()}
    with file.open("w") as stream:
        yaml.dump(params, stream)
    (folder / FOLDER / "dvc.lock").unlink(missing_ok=True)
    dvc(folder / FOLDER, "repro")
    return folder


def metrics(project: Path, protocol: Protocol, seed: int) -> dict[str, Any]:
    name = DATASETS[protocol]
    source = "-from-embedded_symbols" if protocol.has_source else ""
    folder = project / FOLDER / "data" / "evaluate" / protocol / f"{name}{source}-{seed}"
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


@pytest.mark.parametrize("protocol", Protocol)
def test_each_protocol_has_its_numbers_for_each_seed(project: Path, protocol: Protocol) -> None:
    keys = {"base", "novel", "hm", "all"} if protocol is Protocol.BASE_TO_NOVEL else {"all"}
    one, two = (metrics(project, protocol, seed) for seed in (1, 2))
    assert {frozenset(scores) for scores in one.values()} == {frozenset(keys)}
    assert one["zero_shot_teacher"] == two["zero_shot_teacher"]
    assert one["student"] != two["student"]


def test_base_to_novel_with_the_profiles_seed_is_the_profiles_own_pipeline(project: Path) -> None:
    dvc(project, "repro", f"evaluate@{NAME}")
    own = project / "data"
    there = project / FOLDER / "data" / "base_to_novel"
    for stage, file in (("teacher", "teacher"), ("student", "student")):
        mine = (own / stage / NAME / f"{file}.safetensors").read_bytes()
        assert (there / stage / f"{NAME}-1" / f"{file}.safetensors").read_bytes() == mine
    assert metrics(project, Protocol.BASE_TO_NOVEL, 1) == json.loads(
        (own / "evaluate" / NAME / "metrics.json").read_text()
    )


def test_the_summary_has_means_spread_and_counts_of_all_protocols(project: Path) -> None:
    summary = json.loads((project / "reports" / FOLDER / "summary.json").read_text())
    assert set(summary["protocols"]) == set(Protocol)
    for protocol, name in DATASETS.items():
        key = "hm" if protocol is Protocol.BASE_TO_NOVEL else "all"
        shown = "hm" if protocol is Protocol.BASE_TO_NOVEL else "accuracy"
        scores = summary["protocols"][protocol]["datasets"][name]["student"]
        values = [metrics(project, protocol, seed)["student"][key] for seed in (1, 2)]
        assert scores[shown] == pytest.approx(sum(values) / 2, abs=0.006)
        assert scores[f"{shown}_std"] == pytest.approx(
            abs(values[0] - values[1]) / 2**0.5, abs=0.01
        )
        assert scores[f"{shown}_n"] == 2


def test_nothing_runs_twice_and_a_further_seed_leaves_the_others_alone(project: Path) -> None:
    folder = project / FOLDER
    assert "Running stage" not in dvc(folder, "repro")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    listed = dvc(folder, "status")
    (folder / "params.yaml").write_text(text)
    changed = {line.rstrip(":") for line in listed.splitlines() if line and line[0].isalpha()}
    assert changed == {
        "report", "source_teacher@3",
        *(f"{protocol}{part}@{name}-3" for protocol, name in DATASETS.items()
          for part in ("", "_student", *(() if protocol.has_source else ("_teacher",)))),
    }  # fmt: skip


def test_the_tables_are_shown_by_one_command(project: Path) -> None:
    shown = run(["promptkd", "protocols", "show"], project)
    assert "domain" in shown.lower()
    assert "±" in shown
