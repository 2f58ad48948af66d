"""The README names only what there is."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from readme import README, blocks, commands
from typer.main import get_command

from pd_core.cli.verbs import app
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import FOLDER, load_protocols
from pd_core.reporting.results import KEYS, MODELS
from recipes.__main__ import app as recipes

ROOT = Path(__file__).parents[2]
WEIGHTS = (ROOT / "pd_core" / "models" / "weights" / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", README))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


STAGES = sorted(set(re.findall(r"dvc repro ([a-z_]+@[a-z_]+(?:-\d)?)", README)))


@pytest.mark.parametrize("name", [name for name in STAGES if name[-1].isdigit()])
def test_every_stage_of_a_protocol_exists(name: str) -> None:
    stage, dataset, seed = re.split("[@-]", name)
    params, _ = load_protocols(ROOT / FOLDER)
    assert stage in yaml.safe_load((ROOT / FOLDER / "dvc.yaml").read_text())["stages"]
    assert dataset in params.of(Protocol(stage))
    assert int(seed) in params.seeds


@pytest.mark.parametrize("name", [name for name in STAGES if not name[-1].isdigit()])
def test_every_stage_exists(name: str) -> None:
    stage, dataset = name.split("@")
    assert stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]
    assert dataset in {*shipped, *yaml.safe_load(blocks("yaml")[0])}


@pytest.mark.parametrize("key", sorted(set(re.findall(r"-S ([a-z_.]+)=", README))))
def test_every_parameter_exists(key: str) -> None:
    block, name = key.split(".")
    assert name in yaml.safe_load((ROOT / "params.yaml").read_text())[block]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)h][^)]*)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    path, _, part = link.partition("#")
    assert (ROOT / path).exists()
    heads = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert not part or part in {head.lower().replace(" ", "-") for head in heads}


def committed(path: str) -> Any:
    """Return the content of a JSON file as the last commit has it."""
    # A run of one's own rewrites the working tree's with the last digits of its processor.
    return json.loads(subprocess.check_output(["git", "show", f"HEAD:{path}"], cwd=ROOT))


@pytest.mark.parametrize("who", MODELS)
def test_the_table_of_one_seed_is_the_reports(who: str) -> None:
    average = committed("reports/quickstart/summary.json")["average"]
    assert f"| {' | '.join(f'{average[who][key]:.1f}' for key in KEYS)} |" in table(0)[TITLES[who]]


@pytest.mark.parametrize("who", MODELS)
def test_the_table_of_the_protocols_is_the_reports_with_its_spread(who: str) -> None:
    protocols = committed("reports/protocols/summary.json")["protocols"]
    cells = []
    for protocol in Protocol:
        key = "hm" if protocol is Protocol.BASE_TO_NOVEL else "accuracy"
        scores = protocols[protocol]["average"][who]
        assert scores[f"{key}_n"] == 3
        spread = f" ± {scores[f'{key}_std']:.1f}" if scores[f"{key}_std"] else ""
        cells.append(f"{scores[key]:.1f}{spread}")
    assert f"| {' | '.join(cells)} |" in table(1)[TITLES[who]]


def table(number: int) -> dict[str, str]:
    """Return the rows of one of the README's first tables by their heads, without bold type."""
    text = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)[number].replace("**", "")
    return {row.split("|")[1].strip(): row for row in text.splitlines()}


RECIPE = re.findall(r"^    (promptkd .+)$", WEIGHTS, re.MULTILINE)


@pytest.mark.parametrize("line", [*RECIPE, *commands("promptkd")])
def test_every_command_exists(line: str) -> None:
    _, *words = line.split()
    command = get_command(app)
    if words[0] == "embedded":
        command = get_command(recipes)
        del words[0]
    while (known := getattr(command, "commands", None)) is not None:
        command = known[words.pop(0)]
    rest = words
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
