"""The documentation names only what exists, and its tables have the numbers of the reports."""

import json
import re
import subprocess
from typing import Any

import pytest
import yaml
from documents import PAGES, ROOT, TEXT, block, commands
from typer.main import get_command

from pd_core.cli.verbs import app
from pd_core.core.options import TITLES
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import FOLDER, load_protocols
from pd_core.pipeline.stages.params import Params
from pd_core.reporting.results import KEYS, MODELS
from recipes.__main__ import app as recipes

WEIGHTS = (ROOT / "pd_core" / "models" / "weights" / "README.md").read_text()
MARKDOWN = sorted(
    path
    for path in subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, text=True,
    ).split()
    if (ROOT / path).is_file()
)  # fmt: skip
STAGES = sorted(set(re.findall(r"dvc repro ([a-z_]+@[a-z_]+(?:-\d)?)", TEXT)))


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in commands("make")}))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_exists(name: str) -> None:
    stage, dataset, *seed = re.split("[@-]", name)
    folder = ROOT / FOLDER if seed else ROOT
    assert stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    if seed:
        params, _ = load_protocols(folder)
        assert dataset in params.of(Protocol(stage))
        assert int(seed[0]) in params.seeds
    else:
        rows = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]
        assert dataset in {*rows, *yaml.safe_load(block("yaml", "my_digits"))}


@pytest.mark.parametrize(
    "key",
    sorted(
        {
            *re.findall(r"-S ([a-z_.]+)=", TEXT),
            *re.findall(r"`((?:run|prepare|teacher|student|evaluate|promotion)\.[a-z_]+)", TEXT),
        }
    ),
)
def test_every_parameter_exists(key: str) -> None:
    block, name = key.split(".")
    config = Params.model_fields[block].annotation
    assert config is not None
    assert name in config.model_fields


@pytest.mark.parametrize("page", MARKDOWN)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("file", ["README.md", "docs/index.md", "mkdocs.yml"])
def test_every_page_is_listed(file: str) -> None:
    text = (ROOT / file).read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(page for page in pages if page not in text) == []


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


FILES = r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|json))`"


@pytest.mark.parametrize("path", sorted(set(re.findall(FILES, TEXT))))
def test_every_named_file_of_the_repository_exists(path: str) -> None:
    written = path.startswith(("data/prepare", "data/evaluate", "build/", "fingerprints/my_"))
    assert written or (ROOT / path).exists() or (ROOT / "pd_core" / path).exists()


def test_the_guide_for_contributors_names_what_is_in_the_code() -> None:
    code = (path for name in ("pd_core", "tests") for path in (ROOT / name).rglob("*.py"))
    files = [*code, *ROOT.glob("*.yaml"), *ROOT.glob("*.toml")]
    words = set(re.findall(r"\w+", "\n".join(file.read_text() for file in files)))
    names = re.findall(r"`([A-Za-z_.]+)(?:\([^`]*\))?`", PAGES["CONTRIBUTING.md"])
    parts = {part for name in names if not (ROOT / name).exists() for part in name.split(".")}
    assert parts - words == set()


def test_the_readme_fits_on_two_screens() -> None:
    assert len(PAGES["README.md"].encode()) <= 9 * 1024


def committed(path: str) -> Any:
    """Return the content of a JSON file as the last commit has it."""
    # A run of one's own rewrites the working tree's with the last digits of its processor.
    return json.loads(subprocess.check_output(["git", "show", f"HEAD:{path}"], cwd=ROOT))


@pytest.mark.parametrize("model", MODELS)
def test_the_table_of_the_readme_has_the_numbers_of_the_report(model: str) -> None:
    average = committed("reports/quickstart/summary.json")["average"]
    expected = f"| {' | '.join(f'{average[model][key]:.1f}' for key in KEYS)} |"
    assert expected in table("README.md", "zero-shot student")[TITLES[model]]


@pytest.mark.parametrize("model", MODELS)
def test_the_table_of_the_protocols_has_the_numbers_of_the_report(model: str) -> None:
    protocols = committed("reports/protocols/summary.json")["protocols"]
    cells = []
    for protocol in Protocol:
        key = "hm" if protocol is Protocol.BASE_TO_NOVEL else "accuracy"
        scores = protocols[protocol]["average"][model]
        assert scores[f"{key}_n"] == 3
        spread = f" ± {scores[f'{key}_std']:.1f}" if scores[f"{key}_std"] else ""
        cells.append(f"{scores[key]:.1f}{spread}")
    rows = table("docs/protocols.md", "zero-shot student")
    assert f"| {' | '.join(cells)} |" in rows[TITLES[model]]


def table(page: str, head: str) -> dict[str, str]:
    """Return the rows of the page's table that has a row head, by their heads; no bold type."""
    for text in re.findall(r"(?:^\|.*\n)+", PAGES[page].replace("**", ""), re.MULTILINE):
        rows = {row.split("|")[1].strip(): row for row in text.splitlines()}
        if head in rows:
            return rows
    raise AssertionError(f"{page} has no table with a row '{head}'")


RECIPE = re.findall(r"^    (promptkd .+)$", WEIGHTS, re.MULTILINE)


@pytest.mark.parametrize("line", [*RECIPE, *commands("promptkd")])
def test_every_command_and_option_exists(line: str) -> None:
    _, *words = line.replace("|", " ").split()
    command = get_command(app)
    if words[0] == "embedded":
        command = get_command(recipes)
        del words[0]
    while words and (verbs := getattr(command, "commands", None)) is not None:
        command = verbs[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    options |= {"--pull"} if command.name == "repro" else set()  # of DVC
    assert {word for word in words if word.startswith("--")} <= options
