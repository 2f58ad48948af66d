"""The ablations are averaged and compared as by hand, and reported the same to the byte."""

import json
import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import golden
import pytest
from golden import shown
from PIL import Image
from scipy.stats import wilcoxon

from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.pipeline.ablations import AblationRow, AblationTable
from pd_core.reporting import ablation_report
from pd_core.reporting.figures import ablation_differences

DATASETS, SEEDS = ("arrows", "greek"), (1, 2)
DEFAULT = {"arrows": (60.0, 62.0), "greek": (40.0, 42.0)}  # 50 and 52 on average
BETTER = {"arrows": (61.0, 66.0), "greek": (43.0, 44.0)}  # 52 and 55 on average


def row_of(variant: str, label: str, **more: Any) -> AblationRow:
    return AblationRow(variant=variant, label=label, **more)


def table_of(*rows: AblationRow, title: str = "title", reference: str = "default") -> AblationTable:
    return AblationTable(title=title, source="source", reference=reference, rows=rows)


TABLE = AblationTable(
    title="Form of the loss",
    source="the paper's table 4",
    reference="default",
    rows=(
        row_of("l1", "features | L1", paper=(73.09, 65.98, 69.35)),
        row_of("default", "logits", paper=(79.27, 73.39, 76.22)),
    ),
)


def _scores(value: float) -> dict[str, float]:
    return {"base": value, "novel": value, "hm": value, "all": value}


def _write(folder: Path, variant: str, values: Mapping[str, Sequence[float]], **more: Any) -> None:
    """Write one score for all of a seed's accuracies; `more` goes beside the student's."""
    for name, row in values.items():
        entries = {
            str(seed): {"student": _scores(value), **more} for seed, value in enumerate(row, 1)
        }
        path = folder / variant / name / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    _write(folder, "default", DEFAULT)
    _write(folder, "l1", BETTER)
    return folder


def _summary(
    results: Path, *tables: AblationTable, seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    measured = ablation_report.read(results, tables=tables, datasets=DATASETS, seeds=seeds)
    return ablation_report.summarise(measured, tables)


def _row(results: Path, row: AblationRow, **options: Any) -> dict[str, Any]:
    table = table_of(TABLE.rows[1], row)
    shown: dict[str, Any] = _summary(results, table, **options)["tables"][0]["rows"][1]
    return shown


def test_means_deviations_and_differences_are_those_computed_by_hand(results: Path) -> None:
    row, reference = _summary(results, TABLE)["tables"][0]["rows"]
    assert reference["hm"] == {"mean": 51.0, "sd": 1.41}  # of 50 and 52
    assert row["base"] == row["novel"] == row["hm"] == {"mean": 53.5, "sd": 2.12}  # of 52 and 55
    assert (row["difference"]["mean"], row["difference"]["sd"]) == (2.5, 0.71)  # of 2 and 3
    assert row["paper_difference"] == -6.87
    assert reference["difference"] is reference["paper_difference"] is None


def _over(results: Path, changes: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Compare a variant that differs so much from the default, by data set and seed."""
    _write(results, "default", dict.fromkeys(changes, (60.0, 62.0)))
    better = {name: (60.0 + one, 62.0 + two) for name, (one, two) in changes.items()}
    _write(results, "l1", better)
    measured = ablation_report.read(results, tables=[TABLE], datasets=list(changes), seeds=SEEDS)
    return ablation_report.summarise(measured, [TABLE])


def test_p_is_of_wilcoxons_test_over_data_sets_with_the_means_of_their_seeds(results: Path) -> None:
    changes = {"arrows": (1.0, 4.0), "greek": (3.0, 2.5), "latin": (-1.0, -0.2), "shapes": (5, 9)}
    summary = _over(results, changes)
    p = wilcoxon([statistics.fmean(row) for row in changes.values()], method="exact").pvalue
    assert summary["tables"][0]["rows"][0]["difference"]["p"] == round(float(p), 4)
    text = ablation_report.markdown(summary)
    assert f"(p = {p:.2g})" in text
    assert "Wilcoxon" in text
    assert f"{p:.3f}" in shown(ablation_report.table(summary))


def test_a_variant_that_changes_nothing_has_a_p_of_one(results: Path) -> None:
    summary = _over(results, dict.fromkeys(("arrows", "greek", "latin"), (0.0, 0.0)))
    difference = summary["tables"][0]["rows"][0]["difference"]
    assert difference == {"mean": 0.0, "sd": 0.0, "p": 1.0}


@pytest.mark.parametrize("names", [["greek"], ["arrows", "greek"]])
def test_too_few_data_sets_have_no_p_and_the_report_says_so(
    results: Path, names: list[str]
) -> None:
    summary = _over(results, dict.fromkeys(names, (3.0, 1.0)))
    difference = summary["tables"][0]["rows"][0]["difference"]
    assert difference == {"mean": 2.0, "sd": 1.41, "p": None}
    assert "There is no p-value" in ablation_report.markdown(summary)
    assert "p =" not in ablation_report.markdown(summary)
    assert "no p-value" in shown(ablation_report.table(summary))


def test_the_harmonic_mean_of_a_seed_is_that_of_its_averages(results: Path) -> None:
    # The paper's table 1 for PromptKD: 86.96 and 80.73 give 83.73.
    halves = {"arrows": (90.0, 80.0, 84.71), "greek": (83.92, 81.46, 1.0)}
    for name, values in halves.items():
        scores = dict(zip(("base", "novel", "hm"), values, strict=True))
        path = results / "l1" / name / "metrics.json"
        path.write_text(json.dumps({"1": {"student": scores}}))
    row = _row(results, row_of("l1", "L1"), seeds=(1,))
    assert [row[key]["mean"] for key in ("base", "novel", "hm")] == [86.96, 80.73, 83.73]


def test_one_seed_has_no_standard_deviation(results: Path) -> None:
    summary = _summary(results, TABLE, seeds=(2,))
    row = summary["tables"][0]["rows"][0]
    assert row["hm"] == {"mean": 55.0, "sd": None}
    assert (row["difference"]["mean"], row["difference"]["sd"]) == (3.0, None)
    text = ablation_report.markdown(summary)
    assert "Seed: 2.\n" in text
    assert "±" not in text
    assert "| 55.00 | +3.00 |" in text
    assert ablation_differences(summary) != ablation_differences(_summary(results, TABLE))


def test_of_a_row_the_paper_may_know_the_harmonic_mean_alone_or_nothing(results: Path) -> None:
    alone = row_of("l1", "alone", paper=71.87)
    unknown = row_of("l1", "unknown")
    summary = _summary(results, table_of(TABLE.rows[1], alone, unknown))
    _, one, other = summary["tables"][0]["rows"]
    assert one["paper"] == {"base": None, "novel": None, "hm": 71.87}
    assert one["paper_difference"] == -4.35
    assert other["paper"] == {}
    assert other["paper_difference"] is None
    lines = ablation_report.markdown(summary).splitlines()
    assert lines[-2].endswith("| 71.87 | -4.35 |")
    assert lines[-1].endswith("| – | – |")


def test_a_paper_without_the_reference_has_no_difference(results: Path) -> None:
    rows = (row_of("default", "default"), row_of("l1", "L1", paper=71.87))
    summary = _summary(results, table_of(*rows))
    assert summary["tables"][0]["rows"][1]["paper_difference"] is None
    assert ablation_differences(summary)


def test_teachers_can_be_compared_with_teachers(results: Path) -> None:
    _write(results, "default", DEFAULT, teacher=_scores(70.0))
    _write(results, "l1", DEFAULT, teacher=_scores(64.0))
    rows = (row_of("l1", "L1", who="teacher"), row_of("default", "default", who="teacher"))
    summary = _summary(results, table_of(*rows))
    assert summary["tables"][0]["rows"][0]["difference"]["mean"] == -6.0


def test_of_several_rows_of_the_reference_its_students_is_meant() -> None:
    rows = (
        row_of("default", "teacher", who="teacher"),
        row_of("l1", "L1"),
        row_of("default", "student"),
    )
    assert table_of(*rows).reference_row is rows[2]


def test_a_table_without_its_reference_is_refused(results: Path) -> None:
    with pytest.raises(BadParams, match="reference 'kl' of 'Form' is none of its rows: l1"):
        _summary(results, table_of(row_of("l1", "L1"), title="Form", reference="kl"))


def test_a_checkpoint_chosen_on_test_images_has_a_footnote(results: Path) -> None:
    plain = ablation_differences(_summary(results, TABLE))
    _write(results, "l1", BETTER, selection="best epoch on the test images")
    summary = _summary(results, TABLE)
    assert [row["chosen_on_test"] for row in summary["tables"][0]["rows"]] == [True, False]
    golden.check("ablations.md", ablation_report.markdown(summary))
    golden.check("ablations.txt", shown(ablation_report.table(summary)))
    assert ablation_differences(summary) != plain


def test_the_teacher_of_a_chosen_student_has_no_footnote(results: Path) -> None:
    more = {"teacher": _scores(70.0), "selection": "best_on_test_as_published"}
    _write(results, "l1", BETTER, **more)
    assert not _row(results, row_of("l1", "L1", who="teacher"))["chosen_on_test"]


def test_running_twice_gives_the_same_bytes_whatever_the_users_matplotlib_style(
    results: Path, tmp_path: Path
) -> None:
    import matplotlib as mpl

    options: dict[str, Any] = {"tables": [TABLE], "datasets": DATASETS, "seeds": SEEDS}
    summary = ablation_report.run(results, tmp_path / "first", **options)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        ablation_report.run(results, tmp_path / "second", **options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert sorted(files) == ["summary.json", "summary.md", "summary.png"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()} == files
    assert json.loads(files["summary.json"]) == summary
    with Image.open(BytesIO(files["summary.png"])) as image:
        assert image.width >= 1200
        assert "Software" not in image.info


def test_a_variant_that_was_not_run_is_named_with_the_command_to_run(results: Path) -> None:
    (results / "l1" / "greek" / "metrics.json").unlink()
    with pytest.raises(MissingFile, match="'l1' on 'greek' not found: .*; run `make ablations`"):
        _summary(results, TABLE)


def test_an_absent_seed_is_named(results: Path) -> None:
    _write(results, "default", {name: (*row, 50.0) for name, row in DEFAULT.items()})
    _write(results, "l1", {"arrows": (61.0, 66.0, 67.0)})
    with pytest.raises(BadArtifact, match=r"l1/greek/metrics\.json' has no seed '3'; run `make"):
        _summary(results, TABLE, seeds=(1, 2, 3))


@pytest.mark.parametrize("number", ["null", "100.5"])
def test_scores_that_are_no_percentages_are_refused(results: Path, number: str) -> None:
    entry = f'{{"student": {{"base": 50.0, "novel": {number}, "hm": 50.0}}}}'
    (results / "l1" / "greek" / "metrics.json").write_text(f'{{"1": {entry}, "2": {entry}}}')
    with pytest.raises(BadArtifact, match=r"'1\.student\.novel' in .*; run `make ablations`"):
        _summary(results, TABLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no seed '1'"),
        ('{"1": 7}', "seed '1' in"),
        ('{"1": {"student": 7}}', r"'1\.student\.base'"),
        ('{"1": {"teacher": {"base": 1, "novel": 1, "hm": 1}}}', r"'1\.student\.base'"),
        ('{"1": {"student": {}, "selection": 7}}', "seed '1' in"),
    ],
)
def test_malformed_results_are_refused_in_one_line(results: Path, text: str, message: str) -> None:
    (results / "l1" / "greek" / "metrics.json").write_text(text)
    with pytest.raises(BadArtifact, match=message) as caught:
        _summary(results, TABLE)
    assert str(caught.value).endswith("; run `make ablations`")


def test_nothing_to_average_over_is_refused(results: Path) -> None:
    with pytest.raises(BadParams, match="at least one data set and one seed"):
        _summary(results, TABLE, seeds=())
