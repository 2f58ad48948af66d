"""Two sides are compared, with the reason where a difference has no significance."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import Evaluation, evaluation

from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.data.loading.splits import Protocol
from pd_core.reporting.comparison import Comparison, Measured, Side, compare
from pd_core.reporting.comparison_sources import scores_of
from pd_core.reporting.predictions import Predictions

FIRST, SECOND = evaluation(skill=1.0, seed=1), evaluation(skill=1.6, seed=2)


def measured(one: Evaluation, folder: Path, params: Mapping[str, Any] | None = None) -> Measured:
    one.write(folder)
    return Measured(
        "greek",
        params or {},
        scores_of(one.metrics),
        lambda: Predictions.read(folder / "predictions.json"),
    )


def side(*datasets: Measured, kind: str = "revision") -> Side:
    return Side("given", kind, "name", {one.dataset: one for one in datasets})


def compared(tmp_path: Path, first: Evaluation, second: Evaluation) -> Comparison:
    one, other = (measured(one, tmp_path / str(id(one))) for one in (first, second))
    return compare(side(one), side(other))


def significance(comparison: Comparison) -> dict[tuple[str, str], float | None]:
    return {(one.who, one.metric): one.p for one in comparison.metrics}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "another.png"}, "other test images: greek"),
        ({"label": 4}, "those that the metrics were counted of: greek"),
        ({"student": [2, 2]}, "those that the metrics were counted of: greek"),
        ({"student": [2]}, "no predictions of labelled images: greek"),
        ({"student": "a"}, "no predictions of labelled images: greek"),
        ({"path": None}, "no predictions of labelled images: greek"),
        ({"label": None}, "no predictions of labelled images: greek"),
    ],
)
def test_predictions_that_do_not_fit_are_not_used(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    rows = copy.deepcopy(SECOND.predictions)
    rows[0] |= change
    comparison = compared(tmp_path, FIRST, Evaluation(SECOND.metrics, rows))
    assert set(significance(comparison).values()) == {None}
    (note,) = comparison.notes
    assert note.endswith(reason)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", "[1]", '[{"path": "a", "label": 1e999}]']
)
def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(BadArtifact):
        Predictions.read(path)


def test_the_order_of_pictures_does_not_matter(tmp_path: Path) -> None:
    turned = Evaluation(SECOND.metrics, SECOND.predictions[::-1])
    straight = compared(tmp_path, FIRST, SECOND)
    assert significance(compared(tmp_path, FIRST, turned)) == significance(straight)


def test_where_all_classes_were_taught_their_one_accuracy_is_compared(tmp_path: Path) -> None:
    first, second = (
        evaluation(skill=skill, seed=3, protocol=Protocol.ALL_CLASSES) for skill in (1.0, 1.6)
    )
    found = significance(compared(tmp_path, first, second))
    assert list(found) == [("student", "all")]
    assert found["student", "all"] is not None


def test_an_estimate_without_labels_is_compared_and_has_no_significance(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"path": "a.png", "student": 1, "teacher": 1}]
    first, second = (
        Evaluation({"accuracy": "unknown", "agreement": {"student": value}, "counts": {}}, rows)
        for value in (80.0, 85.0)
    )
    comparison = compared(tmp_path, first, second)
    assert significance(comparison) == {("student", "agreement"): None}
    assert "no predictions of labelled images" in comparison.notes[0]


def test_who_has_no_predictions_is_compared_without_significance(tmp_path: Path) -> None:
    first, second = (
        Evaluation({**one.metrics, "tuned_student": {"base": base}}, one.predictions)
        for one, base in ((FIRST, 50.0), (SECOND, 60.0))
    )
    comparison = compared(tmp_path, first, second)
    assert significance(comparison)["tuned_student", "base"] is None
    assert significance(comparison)["student", "base"] is not None
    assert "no predictions of single images for tuned_student's base: greek" in comparison.notes


def test_differences_below_the_decimals_that_all_keep_are_none(tmp_path: Path) -> None:
    rounded = {
        who: {key: round(value, 2) for key, value in row.items()}
        for who, row in FIRST.metrics.items()
    }
    assert compared(tmp_path, FIRST, Evaluation(rounded, FIRST.predictions)).metrics == ()


def test_sides_without_a_data_set_in_common_are_refused(tmp_path: Path) -> None:
    one = measured(FIRST, tmp_path)
    with pytest.raises(BadParams, match="share no data set; the first has greek, the second latin"):
        compare(side(one), side(replace(one, dataset="latin")))


def test_why_there_are_no_metrics_is_said(tmp_path: Path) -> None:
    one = measured(FIRST, tmp_path)
    comparison = compare(side(one), side(Measured("greek", {}, absent="not evaluated")))
    assert comparison.metrics == ()
    assert "no metrics on the second side, not evaluated: greek" in comparison.notes


def test_a_parameter_that_one_revision_lacks_is_one_that_differs() -> None:
    first, second = Measured("greek", {"a.x": 1, "a.y": 2}), Measured("greek", {"a.x": 1})
    (found,) = compare(side(first), side(second)).params
    assert (found.name, found.first, found.second) == ("a.y", 2, None)


def test_a_parameter_that_another_kind_of_side_lacks_is_not_known() -> None:
    first, second = Measured("greek", {"a.x": 1, "a.y": 2}), Measured("greek", {"a.x": 3})
    comparison = compare(side(first), side(second, kind="version"))
    assert [one.name for one in comparison.params] == ["a.x"]
    assert "not all parameters of `a` are known of both sides: greek" in comparison.notes


def test_a_value_is_the_same_as_whole_number_and_as_fraction() -> None:
    first, second = Measured("greek", {"a.x": 5}), Measured("greek", {"a.x": 5.0})
    assert compare(side(first), side(second)).params == ()


def test_what_cannot_be_read_is_a_reason_not_an_error(tmp_path: Path) -> None:
    def lost() -> Predictions:
        raise MissingFile("they are gone")

    first = measured(FIRST, tmp_path / "first")
    second = replace(measured(SECOND, tmp_path / "second"), predictions=lost)
    comparison = compare(side(first), side(second))
    assert set(significance(comparison).values()) == {None}
    assert comparison.notes == ("no significance, on the second side they are gone: greek",)
