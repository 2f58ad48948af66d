"""The protocols' report says what the summary holds, and is the same to the byte."""

import hashlib
import json
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from protocol_runs import DATASETS, SEEDS, SOURCE, path_of, put, write_all
from rich.console import Console

from pd_core.core.errors import MissingFile
from pd_core.data.loading.splits import Protocol
from pd_core.reporting import protocol_report
from pd_core.reporting.figures import single_seeds as figure
from pd_core.reporting.results import MODELS

TITLES = {"latin": "Latin letters, faded photo", "greek": "Greek letters, neon"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_all(folder)
    return folder


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, where nobody looks at it: it takes most of a report's time."""
    monkeypatch.setattr(protocol_report, "single_seeds", lambda *_: b"no figure")


def run(results: Path, name: str = "report", **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"datasets": DATASETS, "seeds": SEEDS, "source": SOURCE}
    folder = results.parent / name
    return protocol_report.run(
        results, folder, profile="quickstart", titles=TITLES, **options | changes
    )


def shown(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(protocol_report.table(summary, TITLES))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def go_wild(results: Path) -> None:
    """Take twelve points from one student's accuracy."""
    path = path_of(results, (Protocol.DOMAIN_GENERALISATION, "latin_neon", 2))
    scores = json.loads(path.read_text())
    scores["student"]["all"] -= 12
    path.write_text(json.dumps(scores))


def test_all_three_files_are_the_same_to_the_byte_in_another_run(results: Path) -> None:
    run(results, "one")
    run(results, "two")
    one, two = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        for folder in (results.parent / "one", results.parent / "two")
    )
    assert one == two
    assert set(one) == {"summary.json", "summary.md", "summary.png"}


@pytest.mark.usefixtures("no_figure")
def test_a_summary_read_back_is_told_as_the_one_that_was_written(results: Path) -> None:
    summary = run(results)
    read = json.loads((results.parent / "report" / "summary.json").read_text())
    assert read == summary
    assert protocol_report.markdown(read, TITLES) == protocol_report.markdown(summary, TITLES)
    assert figure(read, TITLES) == figure(summary, TITLES)
    assert shown(read) == shown(summary)


@pytest.mark.usefixtures("no_figure")
def test_a_missing_run_leaves_the_report_as_it_was(results: Path) -> None:
    run(results)
    before = (results.parent / "report" / "summary.md").read_bytes()
    path_of(results, (Protocol.ALL_CLASSES, "latin", 1)).unlink()
    with pytest.raises(MissingFile):
        run(results)
    assert (results.parent / "report" / "summary.md").read_bytes() == before


@pytest.mark.usefixtures("no_figure")
def test_markdown_has_a_table_for_each_protocol_in_their_order(results: Path) -> None:
    text = protocol_report.markdown(run(results), TITLES)
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "## Base to novel",
        "## Cross-data-set, teacher from Latin letters, faded photo",
        "## Domain generalisation, teacher from Latin letters, faded photo",
        "## All classes",
    ]
    assert text.count("| average |") == 4
    assert text.count("| source's teacher |") == text.count("| tuned teacher |") == 2


@pytest.mark.usefixtures("no_figure")
def test_markdown_shows_every_mean_with_its_deviation(results: Path) -> None:
    summary = run(results)
    text = protocol_report.markdown(summary, TITLES)
    for part in summary["protocols"].values():
        for row in (*part["datasets"].values(), part["average"]):
            for scores in row.values():
                for key in ("base", "novel", "hm", "accuracy"):
                    if key in scores:
                        assert f"{scores[key]:.2f} ± {scores[f'{key}_std']:.2f}" in text
    greek = next(line for line in text.splitlines() if line.startswith("| Greek letters, neon"))
    assert len(greek.split("|")) == 7
    assert greek.count(" / ") == 8


@pytest.mark.usefixtures("no_figure")
def test_differences_are_told_with_their_p(results: Path) -> None:
    summary = run(results)
    one = summary["protocols"]["base_to_novel"]["differences"][0]
    line = (
        "- distilled student over zero-shot student: "
        f"+{one['difference']:.2f} ± {one['difference_std']:.2f} points over 3 data sets, p = 0.25."
    )
    assert line in protocol_report.markdown(summary).splitlines()
    short = f"+{one['difference']:.1f} ± {one['difference_std']:.1f} points, p = 0.25"
    assert short in shown(summary)


@pytest.mark.usefixtures("no_figure")
def test_a_single_data_set_is_too_few_for_p(results: Path) -> None:
    text = protocol_report.markdown(run(results))
    assert text.count("points over 1 data set, too few for p.") == 4


@pytest.mark.usefixtures("no_figure")
def test_an_outlier_is_named_and_where_there_is_none_that_is_said(results: Path) -> None:
    go_wild(results)
    summary = run(results)
    one = summary["protocols"]["domain_generalisation"]["outliers"][0]
    line = (
        f"outlier: latin_neon, distilled student, seed 2: {one['value']:.1f}, "
        f"{one['deviation']:+.1f} points off the other seeds' {one['others']:.1f}"
    )
    text = protocol_report.markdown(summary, TITLES)
    assert f"- {line}." in text.splitlines()
    for count in (9, 6, 3):
        assert f"- no outlier among {count} runs." in text.splitlines()
    assert line in " ".join(shown(summary, width=200).split())


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_less_than_three_seeds_name_no_outlier_and_say_so(
    results: Path, seeds: tuple[int, ...]
) -> None:
    text = protocol_report.markdown(run(results, seeds=seeds))
    assert text.count("- outliers: none named, which takes three seeds.") == 4


@pytest.mark.usefixtures("no_figure")
def test_a_single_seed_shows_no_deviation(results: Path) -> None:
    summary = run(results, seeds=[2])
    assert "±" not in protocol_report.markdown(summary)
    assert "±" not in shown(summary)
    assert "seed 2" in shown(summary)


@pytest.mark.usefixtures("no_figure")
def test_the_terminal_shows_headline_numbers_with_one_decimal(results: Path) -> None:
    summary = run(results)
    text = shown(summary)
    for part in summary["protocols"].values():
        for row in (*part["datasets"].values(), part["average"]):
            for scores in row.values():
                key = "hm" if "hm" in scores else "accuracy"
                assert f"{scores[key]:.1f} ± {scores[f'{key}_std']:.1f}" in text
    for title in ("Base to novel", "All classes", "Greek letters, neon"):
        assert title in text


@pytest.mark.usefixtures("no_figure")
def test_a_terminal_of_80_columns_cuts_no_number(results: Path) -> None:
    text = shown(run(results), width=80)
    assert "…" not in text
    differences = [line for line in text.splitlines() if " over zero-shot " in line]
    assert len(differences) == 12
    assert all(" points, " in line for line in differences)


@pytest.mark.usefixtures("no_figure")
def test_a_long_name_is_cut_and_takes_one_line(results: Path) -> None:
    before = shown(run(results), width=80).splitlines()
    console = Console(file=StringIO(), width=80, record=True)
    title = "Armenian, Georgian and Hebrew letters, embroidery"
    console.print(protocol_report.table(run(results), {**TITLES, "greek": title}))
    lines = console.export_text().splitlines()
    assert len(lines) == len(before)
    rows = [line for line in lines if line.startswith("Armenian")]
    assert len(rows) == 2
    assert all("… " in row and row.count(" ± ") == 4 for row in rows)


@pytest.mark.usefixtures("no_figure")
def test_titles_are_no_markup(results: Path) -> None:
    console = Console(file=StringIO(), width=200)
    console.print(protocol_report.table(run(results), {"greek": "[red]Greek[/red]"}))
    assert isinstance(console.file, StringIO)
    assert "[red]Greek[/red]" in console.file.getvalue()


@pytest.mark.usefixtures("no_figure")
def test_the_figure_grows_with_its_rows_and_is_a_picture(results: Path) -> None:
    whole = Image.open(BytesIO(figure(run(results), TITLES)))
    part = Image.open(
        BytesIO(figure(run(results, datasets={Protocol.ALL_CLASSES: ["latin"]}), TITLES))
    )
    assert whole.format == part.format == "PNG"
    assert whole.width == part.width == 1500
    assert whole.height > 3 * part.height


@pytest.mark.usefixtures("no_figure")
def test_nothing_is_cut_at_the_edges_of_the_figure(results: Path) -> None:
    title = "Letters of several alphabets, photographed in bad light by a hand that trembles"
    titles = dict.fromkeys(("latin", "greek", "latin_neon"), title)
    picture = np.asarray(Image.open(BytesIO(figure(run(results), titles))).convert("L"))
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all()


@pytest.mark.usefixtures("no_figure")
def test_the_figure_rings_an_outlier(results: Path) -> None:
    before = figure(run(results))
    summary = run(results)
    wild = {"dataset": "latin_neon", "who": "student", "seed": 2}
    summary["protocols"]["domain_generalisation"]["outliers"] = [wild]
    assert figure(summary) != before


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("who", ["zero_shot_student", "teacher", "student"])
def test_the_figure_shows_single_seeds_and_not_their_mean_alone(results: Path, who: str) -> None:
    summary = run(results, datasets={Protocol.ALL_CLASSES: ["latin"]})
    before = figure(summary)
    seeds = summary["protocols"]["all_classes"]["runs"]["latin"]
    for seed, change in (("1", 3), ("2", -3)):  # the mean stays
        seeds[seed][who]["accuracy"] += change
    assert figure(summary) != before


@pytest.mark.usefixtures("no_figure")
def test_numbers_at_the_ends_of_the_scale_are_drawn(results: Path) -> None:
    for name in DATASETS[Protocol.CROSS_DATASET]:
        for seed in SEEDS:
            scores = {who: {"all": 100.0 if who == "student" else 0.0} for who in MODELS}
            put(results, (Protocol.CROSS_DATASET, name, seed), scores)
    assert figure(run(results, datasets={Protocol.CROSS_DATASET: DATASETS[Protocol.CROSS_DATASET]}))
