"""The page shows all protocols over several seeds, their spread, and what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
from page_project import NAME, PROTOCOLS, ROOT, job, protocols

from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import REPORT
from pd_core.reporting import page as pages
from pd_core.reporting import page_content, page_figures
from pd_core.reporting.page import Page, paper

TARGETS = [name for name in paper()["cross_dataset"] if name != "average"]
OURS = {
    Protocol.BASE_TO_NOVEL: ["imagenet", *TARGETS],
    Protocol.CROSS_DATASET: TARGETS,
    Protocol.DOMAIN_GENERALISATION: ["imagenetv2", "imagenet_sketch"],
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in a folder where no data set was run."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)


def gather(*names: str) -> Page:
    """Gather the page of a profile of these data sets."""
    here = Path.cwd()
    jobs = {name: job(here, NAME) for name in names or (NAME, "embedded_greek", "embedded_latin")}
    return pages.gather(
        jobs, here / "build", profile="quickstart", root=here, protocols=here / REPORT
    )


def cells(text: str, start: str) -> list[str]:
    """Return the cells of the first row of a Markdown text that starts so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def section(page: Page, heading: str) -> str:
    """Return what Markdown has under a heading."""
    return page_content.markdown(page).split(f"# {heading}", 1)[1].split("\n#", 1)[0]


def test_markdown_and_html_show_every_protocol_with_the_spread_of_its_seeds() -> None:
    protocols(Path.cwd(), seeds=(1, 2, 5))
    page = gather()
    text = page_content.markdown(page)
    part = text[text.index("## Protocols and seeds") : text.index("## Cost")]
    golden.check("page_seeds.md", part.replace("\N{NO-BREAK SPACE}", " "))
    html = page_content.html(page)
    numbers = re.findall(r"\d+\.\d\d ±\N{NO-BREAK SPACE}\d+\.\d\d", part)
    assert numbers
    assert all(number in html for number in numbers)


def test_a_single_seed_has_no_spread() -> None:
    protocols(Path.cwd(), seeds=(4,))
    page = gather()
    assert "One seed: 4." in page_content.html(page)
    for text in (page_content.html(page), page_content.markdown(page)):
        assert "±" not in text
        assert "Distilled student over zero-shot student: +2" in text


def test_a_seed_that_is_far_off_is_named() -> None:
    protocols(Path.cwd(), wild=11.0)
    lines = page_content.about_protocol(gather(), Protocol.ALL_CLASSES)
    (line,) = (line for line in lines if line.startswith("Outlier"))
    assert "Handwritten digits" in line
    assert "distilled student, seed 3" in line


def test_the_figure_has_a_dot_for_each_seed() -> None:
    protocols(Path.cwd(), seeds=(1, 2))
    two = page_figures.seeds(gather().seeds.summary, Protocol.ALL_CLASSES, {})
    protocols(Path.cwd(), seeds=(1, 2, 3))
    three = page_figures.seeds(gather().seeds.summary, Protocol.ALL_CLASSES, {})
    marks = [_marks(one, color) for one in (two, three) for color in ("#2f8fd0", "#e0701f")]
    assert marks[2] - marks[0] == marks[3] - marks[1] == len(PROTOCOLS[Protocol.ALL_CLASSES])


def _marks(svg: str, colour: str) -> int:
    return sum("<use" in line and f"fill: {colour}" in line for line in svg.splitlines())


def test_what_was_not_run_is_said_with_the_command_that_runs_it() -> None:
    page = gather()
    for text in (page_content.html(page), page_content.markdown(page)):
        assert "Not run. `cd protocols &amp;&amp; dvc repro`" in text.replace("&&", "&amp;&amp;")


Damage = Callable[[dict[str, Any]], object]


def _student(summary: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = summary["protocols"]["all_classes"]["datasets"][NAME]["student"]
    return row


DAMAGES: dict[str, Damage] = {
    "no protocols": lambda summary: summary.pop("protocols"),
    "protocols as a list": lambda summary: summary["protocols"].update(all_classes=[1]),
    "no seed": lambda summary: summary.update(seeds=[]),
    "a seed without runs": lambda summary: summary.update(seeds=[1, 2, 3, 4]),
    "no source": lambda summary: summary.pop("source"),
    "a model without numbers": lambda summary: _student(summary).clear(),
    "an average without a model": lambda summary: summary["protocols"]["all_classes"][
        "average"
    ].pop("teacher"),
    "a word for a number": lambda summary: _student(summary).update(accuracy="high"),
    "a number that is none": lambda summary: _student(summary).update(accuracy=float("nan")),
    "an unknown model": lambda summary: summary["protocols"]["all_classes"]["differences"][
        0
    ].update(first="pupil"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_is_noted_and_the_rest_is_shown(damage: str) -> None:
    summary = protocols(Path.cwd())
    DAMAGES[damage](summary)
    _path().write_text(json.dumps(summary))
    _noted(gather())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"seeds": 3}'])
def test_what_is_no_summary_is_noted(content: str) -> None:
    protocols(Path.cwd())
    _path().write_text(content)
    _noted(gather())


def _path() -> Path:
    return REPORT / "summary.json"


def _noted(page: Page) -> None:
    (note,) = page_content.about_seeds(page)
    assert note.startswith("Protocols and seeds are left out: ")
    assert "run `cd protocols && dvc repro report`" in note
    assert "\n" not in note
    for text in (page_content.html(page), page_content.markdown(page)):
        assert "are left out: " in text
        assert "## Cost" in text or "Provenance" in text


def test_json_has_the_whole_summary() -> None:
    summary = protocols(Path.cwd())
    path = page_content.write(gather(), Path("build"))
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["seeds"]["summary"] == json.loads(json.dumps(summary))


def papers_page(**made: Any) -> Page:
    """Gather the page of the paper's data sets, of which protocols were run over seeds."""
    protocols(Path.cwd(), datasets=OURS, **{"source": "imagenet", **made})
    return gather(*OURS[Protocol.BASE_TO_NOVEL])


def test_several_seeds_stand_beside_the_papers_mean_with_their_spread() -> None:
    page = papers_page()
    row = next(one for one in page.beside["student"] if one.dataset == "dtd")
    mine = page.seeds.protocols[Protocol.BASE_TO_NOVEL]["datasets"]["dtd"]["student"]
    assert row.ours == {key: mine[key] for key in ("base", "novel", "hm")}
    assert row.spread == {key: mine[f"{key}_std"] for key in ("base", "novel", "hm")}
    assert row.paper == {"base": 85.84, "novel": 71.37, "hm": 77.94}
    text = section(page, "Beside the paper")
    assert cells(text, "DTD")[1] == "3 seeds here"
    assert "ours are the mean ± standard deviation of seeds 1, 2, 3" in text


def test_the_other_protocols_stand_beside_the_papers() -> None:
    page = papers_page()
    mine = page.seeds.protocols[Protocol.CROSS_DATASET]
    for name, row in (("EuroSAT", mine["datasets"]["eurosat"]), ("average", mine["average"])):
        _, ours, theirs, difference = cells(section(page, "Cross-data-set\n"), name)
        accuracy = row["student"]["accuracy"]
        assert ours.startswith(f"{accuracy:.2f} ±")
        assert float(difference) == pytest.approx(accuracy - float(theirs), abs=0.006)
    text = section(page, "Domain generalisation\n")
    assert cells(text, "ImageNetV2")[1].startswith("7")
    assert cells(text, "ImageNet-A")[1:] == ["not run", "70.36", "–"]
    assert cells(text, "average of the paper's")[1] == "not run"


def test_accuracies_of_a_teacher_from_elsewhere_are_not_compared() -> None:
    page = papers_page(source="dtd")
    rows = [row for one in page.across.values() for people in one.values() for row in people]
    assert rows
    assert all(row.ours is None and row.difference is None for row in rows)


def test_a_profile_without_the_papers_source_has_nothing_beside_the_papers_other_protocols() -> (
    None
):
    protocols(Path.cwd())
    page = gather()
    assert page.across == {}
    assert "93.61" not in page_content.html(page)
