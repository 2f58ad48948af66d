"""A distilled student that is worse than the zero-shot one is marked wherever it is shown."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import artifacts
from pd_core.cli import registry
from pd_core.core.artifacts import write_json
from pd_core.core.scores import LEGEND, WORSE, is_worse, sign
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.class_metrics import class_metrics
from pd_core.mlops import bundle
from pd_core.mlops.registry import Version
from pd_core.mlops.registry.register import Origin
from pd_core.models.portable.preprocess import Preprocess
from pd_core.pipeline.ablations import AblationRow, AblationTable
from pd_core.reporting import (
    ablation_report,
    page_classes,
    page_content,
    protocol_report,
    protocol_summary,
    report,
    unequal,
)
from pd_core.reporting.comparison import Measured, Side, compare
from pd_core.reporting.page import Page, across, beside
from pd_core.reporting.page_dataset import DatasetPage, Result
from pd_core.reporting.page_protocols import Seeds

SIGN = sign(worse=True)
MODELS = ("zero_shot_student", "zero_shot_teacher", "teacher", "student")
LINE = f"{WORSE} worse than the zero-shot student: My photos"


def evaluations(student: float) -> dict[str, Any]:
    row = {model: {"base": 50.0, "novel": 50.0, "hm": 50.0, "all": 50.0} for model in MODELS}
    better = {**row, "student": dict.fromkeys(("base", "novel", "hm", "all"), 60.0)}
    return {
        "fine": better,
        "photos": {**row, "student": dict.fromkeys(("base", "novel", "hm", "all"), student)},
    }


TITLES = {"photos": "My photos", "fine": "Fine"}


def test_terminal_markdown_and_page_mark_the_student_and_name_the_data_set() -> None:
    summary = report.summarise("quickstart", evaluations(49.0))
    assert f"/ **49.00\N{NO-BREAK SPACE}{WORSE}** |" in report.markdown(summary, TITLES)
    assert f"{LINE}." in report.markdown(summary, TITLES)
    table = report.table(summary, TITLES)
    marked = [row.cells[0] for row in table.body if any(WORSE in cell for cell in row.cells)]
    assert marked == ["My photos"]
    assert f"{LINE}." in table.notes
    page = Page.__new__(Page)
    for key, value in {"summary": summary, "titles": TITLES, "datasets": tuple(TITLES)}.items():
        object.__setattr__(page, key, value)
    rows = {row.cells[0]: row.cells for row in page_content.summary_table(page, "hm").body}
    assert rows["My photos"][-1] == f"49.0\N{NO-BREAK SPACE}{WORSE}"
    assert WORSE not in "".join(rows["Fine"])


def test_nothing_is_marked_where_no_student_is_worse() -> None:
    summary = report.summarise("quickstart", evaluations(50.0))
    assert WORSE not in report.markdown(summary, TITLES)
    assert WORSE not in "".join(report.table(summary, TITLES).notes)


def test_an_average_that_is_worse_is_named_as_well() -> None:
    summary = report.summarise("quickstart", evaluations(50.0))
    summary["average"]["student"]["hm"] = 49.0
    assert f"{LEGEND}: average." in report.table(summary, TITLES).notes


def test_several_seeds_mark_it_as_well() -> None:
    runs = {name: {"1": row} for name, row in evaluations(49.0).items()}
    summary = protocol_summary.summarise("quickstart", {Protocol.BASE_TO_NOVEL: runs}, None)
    text = protocol_report.markdown(summary, TITLES)
    assert f"**49.00\N{NO-BREAK SPACE}{WORSE}** |" in text
    assert f"- {LINE}." in text
    assert LINE in protocol_report.table(summary, TITLES).notes


def test_an_estimate_without_test_labels_says_so_too() -> None:
    estimate = {
        "accuracy": "unknown", "agreement": {"student": 90.0},
        "cross_validated": {"student": 40.0, "zero_shot_student": 45.0},
        "counts": {"unlabelled": 10, "labels": 8},
    }  # fmt: skip
    summary = report.summarise("quickstart", {"photos": estimate})
    (line,) = report.estimates(summary, TITLES)
    assert line.endswith(f"40.0% correct ({WORSE} worse than the zero-shot student, 45.0%).")


def test_card_and_version_mark_it() -> None:
    info = {"names": ["oak"], "model": "tiny", "vectors": "tiny", "network": {
        "prompt_depth": 1, "layers": 1}, "preprocess": asdict(Preprocess(16))}  # fmt: skip
    tags = {"protocol": "all_classes", "seed": "1", "selection": "last"}
    for student, marked in ((49.0, True), (51.0, False)):
        metrics = {"zero_shot_student": {"all": 50.0}, "student": {"all": student}}
        text = bundle.card("promptkd-photos", info, metrics, {}, tags, {})
        assert (f"| distilled student{SIGN} |" in text) is marked
        assert (f"\n{LEGEND}\n" in text) is marked
        origin = Origin("quickstart", "photos", metrics=metrics)
        assert ("caution" in origin.version_tags()) is marked


def test_the_card_of_an_estimate_marks_it_as_well() -> None:
    info = {"names": ["oak"], "model": "tiny", "vectors": "tiny", "network": {
        "prompt_depth": 1, "layers": 1}, "preprocess": asdict(Preprocess(16))}  # fmt: skip
    for student, marked in ((40.0, True), (46.0, False)):
        estimate = {"cross_validated": {"student": student, "zero_shot_student": 45.0}}
        text = bundle.card("promptkd-photos", info, estimate, {}, {}, {})
        assert (f"cross validated: {student}%{SIGN}." in text) is marked
        assert (f"\n{LEGEND}\n" in text) is marked


def side(student: float, before: float) -> Side:
    photos = {
        "student": dict.fromkeys(("base", "novel", "hm"), student),
        "zero_shot_student": dict.fromkeys(("base", "novel", "hm"), before),
    }
    better = {**photos, "student": dict.fromkeys(("base", "novel", "hm"), student + 1)}
    measured = {"photos": Measured("photos", {}, photos), "fine": Measured("fine", {}, better)}
    return Side("given", "revision", "name", measured)


def test_a_comparison_marks_each_side_by_its_own_zero_shot_student() -> None:
    comparison = compare(side(49.5, 50.0), side(60.0, 61.5))
    rows = {
        row.cells[0]: row.cells[3:5]
        for row in comparison.tables()[-1].body
        if row.cells[1:3] == ("student", "hm")
    }
    assert rows["photos"] == (f"49.50{SIGN}", f"60.00{SIGN}")
    assert rows["fine"] == ("50.50", f"61.00{SIGN}")
    assert rows["average"] == ("50.00", f"60.50{SIGN}")
    cells = [cell for row in comparison.tables()[-1].body for cell in row.cells]
    assert sum(WORSE in cell for cell in cells) == 4  # the headline numbers alone
    assert LEGEND in comparison.remarks()
    assert LEGEND not in compare(side(50.0, 49.0), side(60.0, 50.0)).remarks()


@pytest.mark.parametrize(("student", "marked"), [(49.0, True), (51.0, False)])
def test_ablations_mark_a_student_below_the_zero_shot_one(
    tmp_path: Path, student: float, marked: bool
) -> None:
    scores = dict.fromkeys(("base", "novel", "hm"), 50.0)
    default = {"1": {"zero_shot_student": scores, "student": dict.fromkeys(scores, 60.0)}}
    write_json(tmp_path / "default" / "photos" / "metrics.json", default)
    variant = {"1": {"student": dict.fromkeys(scores, student)}}
    write_json(tmp_path / "variant" / "photos" / "metrics.json", variant)
    rows = tuple(AblationRow(variant=name, label=name) for name in ("default", "variant"))
    table = AblationTable(title="title", source="source", reference="default", rows=rows)
    measured = ablation_report.read(tmp_path, tables=[table], datasets=["photos"], seeds=[1])
    summary = ablation_report.summarise(measured, [table])
    shown = ablation_report.table(summary)
    assert [WORSE in row.cells[1] for row in shown.body if len(row.cells) > 1] == [False, marked]
    assert (LEGEND in shown.notes) is marked
    text = ablation_report.markdown(summary)
    assert (f"| {student:.2f}{SIGN} |" in text) is marked
    assert (f"\n{LEGEND}\n" in text) is marked


@pytest.mark.parametrize(("student", "marked"), [(49.0, True), (50.0, False)])
def test_the_tables_beside_the_paper_mark_it(student: float, marked: bool) -> None:
    halves = report.summarise("paper", {"dtd": evaluations(student)["photos"]})
    accuracies = {model: {"accuracy": 50.0} for model in MODELS}
    accuracies["student"] = {"accuracy": student}
    protocol = Protocol.CROSS_DATASET
    measured = {protocol: {"datasets": {"dtd": accuracies}, "average": accuracies}}
    page = Page.__new__(Page)
    content = {
        "profile": "paper", "titles": {}, "seeds": Seeds(), "beside_seeds": (1,),
        "beside": beside(halves, ["dtd"]),
        "across": across(measured, "imagenet", ["imagenet"]),
    }  # fmt: skip
    for key, value in content.items():
        object.__setattr__(page, key, value)
    for tables in (page_content.paper_tables(page), page_content.across_tables(page, protocol)):
        cells = {
            table.title: [cell for row in table.body for cell in row.cells] for table in tables
        }
        signed = [cell for cell in cells.pop("distilled student, %") if WORSE in cell]
        assert signed == ([f"{student:.2f}{SIGN}"] if marked else [])
        assert not any(WORSE in cell for others in cells.values() for cell in others)
    assert (LEGEND in page_content.about_paper(page)) is marked
    assert (LEGEND in page_content.about_across(page, protocol)) is marked


def test_the_section_of_a_data_set_marks_it() -> None:
    people = {model: Result(50.0, (50.0,), ()) for model in ("teacher", "student")}
    page = DatasetPage("photos", "My photos", ("oak",), 1, (2,), {}, people)
    for student, marked in ((49.0, True), (50.0, False)):
        row = evaluations(student)["photos"]
        names = [row.cells[0] for row in page_classes.accuracy_table(page, row).body]
        assert names == ["teacher", f"student{sign(marked)}"]
        assert page_content.about_student(row) == (f"{LEGEND}." if marked else "")


def test_the_table_of_unequal_classes_marks_its_accuracy() -> None:
    labels = np.array([0, 0, 0, 1])
    right, wrong = class_metrics(labels, labels), class_metrics(labels, np.array([0, 0, 1, 1]))
    for student, marked in ((wrong, True), (right, False)):
        models = {"zero_shot_student": right, "student": student}
        table = unequal.table({"photos": models}, TITLES)
        cells = [[WORSE in cell for cell in row.cells] for row in table.body]
        assert [any(row) for row in cells] == [False, False, marked, False]
        assert cells[2][1] is marked
        assert (LEGEND in table.notes) is marked


def test_the_list_of_versions_and_the_flows_tables_mark_it(tmp_path: Path) -> None:
    for student, marked in ((49.0, True), (51.0, False)):
        metrics = {"zero_shot_student": {"all": 50.0}, "student": {"all": student}}
        tags = Origin("quickstart", "photos", metrics=metrics).version_tags()
        version = Version("promptkd-photos", 1, tags, (), 0.0)
        table = registry._versions_table({"promptkd-photos": [version]})
        assert list(table.columns[3].cells) == [f"{student:.2f}{sign(marked)}"]
        assert (table.caption == LEGEND) is marked
        write_json(tmp_path / "data" / "evaluate" / "photos" / "metrics.json", metrics)
        shown = artifacts.metrics_of(tmp_path, "evaluate@photos")
        assert shown == {f"student{sign(marked)} all": student}
        row = artifacts.row_of("evaluate@photos", "computed", 1.0, shown, "")
        assert (LEGEND in artifacts.legend([row])) is marked


def test_without_both_numbers_nothing_is_worse() -> None:
    assert not is_worse({"student": {"all": 1.0}})
    assert not is_worse({"agreement": {"student": 1.0}})
