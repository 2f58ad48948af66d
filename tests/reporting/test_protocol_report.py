"""The protocols' report has the numbers that other libraries compute, the same to the byte."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from golden import shown
from numpy.typing import NDArray
from PIL import Image
from protocol_runs import DATASETS, SEEDS, SOURCE, Run, Scores, path_of, put, write_all
from scipy import stats

from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.data.loading.splits import Protocol
from pd_core.reporting import protocol_report, protocol_summary
from pd_core.reporting.figures import single_seeds
from pd_core.reporting.results import MODELS

Written = dict[Run, dict[str, Scores]]
KEYS = ("base", "novel", "hm")
TITLES = {"latin": "Latin letters, faded photo", "greek": "Greek letters, neon"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def written(folder: Path) -> Written:
    return write_all(folder)


def read(folder: Path, **changes: Any) -> dict[Protocol, protocol_summary.Runs]:
    options: dict[str, Any] = {"datasets": DATASETS, "seeds": SEEDS, "source": SOURCE}
    return protocol_summary.read(folder, **options | changes)


def summary(folder: Path, **changes: Any) -> dict[str, Any]:
    return protocol_summary.summarise("quickstart", read(folder, **changes), SOURCE)


def run(folder: Path, out: str) -> dict[str, bytes]:
    """Run the stage; return its files."""
    path = folder.parent / out
    options: dict[str, Any] = {"datasets": DATASETS, "seeds": SEEDS, "source": SOURCE}
    protocol_report.run(folder, path, profile="quickstart", titles=TITLES, **options)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def numbers(written: Written, protocol: Protocol, model: str, key: str) -> NDArray[np.float64]:
    """(data sets, seeds), in the order of their names."""
    names = sorted(DATASETS[protocol])
    return np.array([
        [written[protocol, name, seed][model][key] for seed in SEEDS] for name in names
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "keys"),
    [(Protocol.BASE_TO_NOVEL, KEYS), (Protocol.CROSS_DATASET, ("accuracy",))],
)
def test_mean_and_deviation_of_a_data_set_are_over_its_seeds(
    folder: Path, written: Written, protocol: Protocol, keys: tuple[str, ...]
) -> None:
    part = summary(folder)["protocols"][protocol]
    for model in MODELS:
        for key in keys:
            values = numbers(written, protocol, model, "all" if key == "accuracy" else key)
            for row, name in zip(values, sorted(DATASETS[protocol]), strict=True):
                scores = part["datasets"][name][model]
                assert scores[key] == round(float(row.mean()), 2)
                assert scores[f"{key}_std"] == round(float(row.std(ddof=1)), 2)
                assert scores[f"{key}_n"] == 3


def test_the_average_is_taken_within_each_seed_and_its_harmonic_mean_is_of_the_averages(
    folder: Path, written: Written
) -> None:
    base, novel = (
        numbers(written, Protocol.BASE_TO_NOVEL, "student", key).mean(axis=0)
        for key in ("base", "novel")
    )
    average = summary(folder)["protocols"]["base_to_novel"]["average"]["student"]
    means = (("base", base), ("novel", novel), ("hm", stats.hmean(np.stack([base, novel]))))
    for key, seeds in means:
        assert average[key] == round(float(seeds.mean()), 2)
        assert average[f"{key}_std"] == round(float(seeds.std(ddof=1)), 2)


def test_the_averages_harmonic_mean_is_that_of_the_papers_table_1(folder: Path) -> None:
    halves = {"arrows": (90.0, 80.0, 84.71), "greek": (83.92, 81.46, 1.0)}
    for name, values in halves.items():
        scores = dict(zip(KEYS, values, strict=True))
        put(folder, (Protocol.BASE_TO_NOVEL, name, 1), dict.fromkeys(MODELS, scores))
    content = summary(folder, datasets={Protocol.BASE_TO_NOVEL: list(halves)}, seeds=[1])
    average = content["protocols"]["base_to_novel"]["average"]
    assert average["student"] == {"base": 86.96, "novel": 80.73, "hm": 83.73}


@pytest.mark.parametrize("protocol", [Protocol.BASE_TO_NOVEL, Protocol.DOMAIN_GENERALISATION])
def test_differences_are_paired_by_seed_and_tested_over_data_sets(
    folder: Path, written: Written, protocol: Protocol
) -> None:
    rows = summary(folder)["protocols"][protocol]["differences"]
    assert [(row["first"], row["second"]) for row in rows] == list(protocol_summary.COMPARED)
    key, name = ("hm", "hm") if protocol is Protocol.BASE_TO_NOVEL else ("all", "accuracy")
    for row in rows:
        first, second = (numbers(written, protocol, row[side], key) for side in ("first", "second"))
        apart = first - second
        assert (row["key"], row["datasets"], row["seeds"]) == (name, len(DATASETS[protocol]), 3)
        assert row["difference"] == round(float(apart.mean()), 2)
        assert row["difference_std"] == round(float(apart.mean(axis=0).std(ddof=1)), 2)
        p = stats.wilcoxon(apart.mean(axis=1), method="exact").pvalue
        assert row["p"] == float(f"{p:.4g}")


@pytest.mark.parametrize("protocol", [Protocol.ALL_CLASSES, Protocol.CROSS_DATASET])
def test_one_or_two_data_sets_have_differences_without_p(folder: Path, protocol: Protocol) -> None:
    row = summary(folder)["protocols"][protocol]["differences"][0]
    assert row["p"] is None
    assert row["difference"] > 20


def test_a_single_seed_has_no_deviation_and_no_count(folder: Path) -> None:
    content = summary(folder, seeds=[2])
    for part in content["protocols"].values():
        for row in (*part["datasets"].values(), part["average"]):
            assert all(set(scores) in ({*KEYS}, {"accuracy"}) for scores in row.values())
        assert all("difference_std" not in row for row in part["differences"])
    text = protocol_report.markdown(content)
    assert text.count("outliers: none named, which takes three seeds") == 4
    for shape in (text, shown(protocol_report.table(content))):
        assert "±" not in shape
        assert "seed 2" in shape


def test_a_seed_ten_points_off_is_named_beside_the_median_of_the_others(
    folder: Path, written: Written
) -> None:
    run = (Protocol.DOMAIN_GENERALISATION, "latin_neon", 2)
    off = {model: dict(scores) for model, scores in written[run].items()}
    off["student"]["all"] = 58.0
    before = single_seeds(summary(folder))
    put(folder, run, off)
    content = summary(folder)
    others = float(np.mean([written[(*run[:2], seed)]["student"]["all"] for seed in (1, 3)]))
    outliers = {name: part["outliers"] for name, part in content["protocols"].items()}
    row = {
        "dataset": "latin_neon", "who": "student", "seed": 2, "key": "accuracy", "value": 58.0,
        "others": round(others, 2), "deviation": round(58 - others, 2),
    }  # fmt: skip
    assert outliers.pop("domain_generalisation") == [row]
    assert not any(outliers.values())
    line = f"outlier: latin_neon, distilled student, seed 2: 58.0, {58 - others:+.1f} points"
    assert line in protocol_report.markdown(content, TITLES)
    assert line in shown(protocol_report.table(content, TITLES), width=200)
    assert single_seeds(content) != before


def test_the_order_of_data_sets_and_seeds_does_not_matter(folder: Path) -> None:
    turned = {protocol: names[::-1] for protocol, names in reversed(DATASETS.items())}
    assert read(folder, datasets=turned, seeds=SEEDS[::-1]) == read(folder)
    assert str(summary(folder, datasets=turned, seeds=SEEDS[::-1])) == str(summary(folder))


def test_protocols_without_data_sets_and_a_source_of_none_are_left_out(folder: Path) -> None:
    datasets = {Protocol.ALL_CLASSES: ["latin"], Protocol.CROSS_DATASET: []}
    content = summary(folder, datasets=datasets)
    assert list(content["protocols"]) == ["all_classes"]
    assert "source" not in content


@pytest.mark.parametrize(
    "run", [(Protocol.BASE_TO_NOVEL, "greek", 2), (Protocol.CROSS_DATASET, "arrows", 3)]
)
def test_a_missing_run_names_the_stage_to_run(folder: Path, run: Run) -> None:
    protocol, name, seed = run
    path_of(folder, run).unlink()
    with pytest.raises(MissingFile, match=f"`dvc repro {protocol}@{name}-{seed}`"):
        read(folder)


@pytest.mark.parametrize("value", [101, float("nan")])
def test_a_number_that_is_no_percentage_is_refused(
    folder: Path, written: Written, value: Any
) -> None:
    run = (Protocol.ALL_CLASSES, "latin", 1)
    put(folder, run, written[run] | {"teacher": {"all": value}})
    with pytest.raises(BadArtifact, match=r"teacher.all.*`dvc repro all_classes@latin-1`"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"student": 3}', '{"student": {"all": 3}}'])
def test_a_corrupt_file_names_the_stage_to_run(folder: Path, text: str) -> None:
    path_of(folder, (Protocol.BASE_TO_NOVEL, "greek", 1)).write_text(text)
    with pytest.raises(BadArtifact, match=r"`dvc repro base_to_novel@greek-1`"):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [{"datasets": {}}, {"datasets": {Protocol.ALL_CLASSES: []}}, {"seeds": []}, {"source": None}],
)
def test_no_data_set_no_seed_or_no_source_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BadParams, match="need"):
        read(folder, **changes)


def test_the_stage_writes_the_same_bytes_again_and_nothing_where_a_run_is_missing(
    folder: Path,
) -> None:
    files = run(folder, "report")
    assert set(files) == {"summary.json", "summary.md", "summary.png"}
    assert run(folder, "again") == files
    content = json.loads(files["summary.json"])
    assert protocol_report.markdown(content, TITLES).encode() == files["summary.md"]
    path_of(folder, (Protocol.ALL_CLASSES, "latin", 1)).unlink()
    with pytest.raises(MissingFile):
        run(folder, "report")
    assert (folder.parent / "report" / "summary.md").read_bytes() == files["summary.md"]


def test_the_summary_is_shown_as_json_markdown_and_in_a_terminal(folder: Path) -> None:
    content = summary(folder)
    golden.check("protocols.json", json.dumps(content, indent=1))
    golden.check("protocols.md", protocol_report.markdown(content, TITLES))
    golden.check("protocols.txt", shown(protocol_report.table(content, TITLES)))


def test_a_long_name_is_cut_takes_one_line_and_is_no_markup(folder: Path) -> None:
    content = summary(folder)
    before = shown(protocol_report.table(content, TITLES)).splitlines()
    title = "[red]Armenian, Georgian and Hebrew letters, embroidery[/red]"
    table = protocol_report.table(content, {**TITLES, "greek": title})
    assert len(shown(table).splitlines()) == len(before)
    rows = [line for line in shown(table).splitlines() if line.startswith("[red]Armenian")]
    assert len(rows) == 2
    assert all("… " in row and row.count(" ± ") == 4 for row in rows)


def test_the_figure_grows_with_its_rows_and_nothing_is_cut_at_its_edges(folder: Path) -> None:
    title = "Letters of several alphabets, photographed in bad light by a hand that trembles"
    titles = dict.fromkeys(("latin", "greek", "latin_neon"), title)
    part = summary(folder, datasets={Protocol.ALL_CLASSES: ["latin"]})
    large, small = (Image.open(BytesIO(single_seeds(s, titles))) for s in (summary(folder), part))
    assert large.format == small.format == "PNG"
    assert large.width == small.width == 1500
    assert large.height > 3 * small.height
    pixels = np.asarray(large.convert("L"))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("model", ["zero_shot_student", "teacher", "student"])
def test_the_figure_shows_single_seeds_and_not_their_mean_alone(folder: Path, model: str) -> None:
    content = summary(folder, datasets={Protocol.ALL_CLASSES: ["latin"]})
    before = single_seeds(content)
    seeds = content["protocols"]["all_classes"]["runs"]["latin"]
    for seed, change in (("1", 3), ("2", -3)):  # the mean stays
        seeds[seed][model]["accuracy"] += change
    assert single_seeds(content) != before


def test_numbers_at_the_ends_of_the_scale_are_drawn(folder: Path) -> None:
    for seed in SEEDS:
        scores = {model: {"all": 100.0 if model == "student" else 0.0} for model in MODELS}
        put(folder, (Protocol.ALL_CLASSES, "latin", seed), scores)
    assert single_seeds(summary(folder, datasets={Protocol.ALL_CLASSES: ["latin"]}))
