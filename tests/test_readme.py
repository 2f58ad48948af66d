"""The README names only what there is."""

import re
from pathlib import Path

import pytest
import yaml
from readme import README, blocks, commands
from typer.main import get_command

from pd_core.cli import app

ROOT = Path(__file__).parent.parent
WEIGHTS = (ROOT / "pd_core" / "models" / "weights" / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", README))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"dvc repro ([a-z_]+@[a-z_]+)", README))))
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
    assert (ROOT / link).exists()


RECIPE = re.findall(r"^    (promptkd .+)$", WEIGHTS, re.MULTILINE)


@pytest.mark.parametrize("line", [*RECIPE, *commands("promptkd")])
def test_every_command_exists(line: str) -> None:
    _, *words = line.split()
    command = get_command(app)
    while (known := getattr(command, "commands", None)) is not None:
        command = known[words.pop(0)]
    rest = words
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
