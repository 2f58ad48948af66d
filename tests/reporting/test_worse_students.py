"""A distilled student that is worse than the zero-shot one is marked wherever it is shown."""

from typing import Any

from pd_core.core.scores import WORSE, is_worse
from pd_core.data.loading.splits import Protocol
from pd_core.mlops import bundle
from pd_core.mlops.registry.register import Origin
from pd_core.reporting import page_content, protocol_report, report
from pd_core.reporting.page import Page

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


def test_several_seeds_mark_it_as_well() -> None:
    runs = {name: {"1": row} for name, row in evaluations(49.0).items()}
    summary = protocol_report.summarise("quickstart", {Protocol.BASE_TO_NOVEL: runs}, None)
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
        "prompt_depth": 1, "layers": 1, "image_size": 16}}  # fmt: skip
    tags = {"protocol": "all_classes", "seed": "1", "selection": "last"}
    for student, marked in ((49.0, True), (51.0, False)):
        metrics = {"zero_shot_student": {"all": 50.0}, "student": {"all": student}}
        text = bundle.card("promptkd-photos", info, metrics, {}, tags, {})
        assert (f"| distilled student {WORSE} |" in text) is marked
        assert (f"{WORSE} Distillation made it worse" in text) is marked
        origin = Origin("quickstart", "photos", metrics=metrics)
        assert ("caution" in origin.version_tags()) is marked


def test_without_both_numbers_nothing_is_worse() -> None:
    assert not is_worse({"student": {"all": 1.0}})
    assert not is_worse({"agreement": {"student": 1.0}})
