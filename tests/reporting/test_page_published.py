"""The paper's numbers stand beside ours, and never in their place."""

from __future__ import annotations

from statistics import fmean, harmonic_mean
from typing import Any

import pytest

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.page import AVERAGE, PUBLISHED, across, beside, paper, targets

ELEVEN = [name for name in paper()["base_to_novel"] if name != AVERAGE]
OURS = {"base": 80.0, "novel": 70.0, "hm": 74.67}
NOTHING: dict[str, Any] = {"datasets": {}, "average": {}}


def summary(*names: str) -> dict[str, Any]:
    everybody = dict.fromkeys(("zero_shot_teacher", *PUBLISHED), OURS)
    return {"datasets": dict.fromkeys(names, everybody), "average": everybody if names else {}}


def test_the_papers_harmonic_means_are_those_of_its_halves() -> None:
    for name, row in paper()["base_to_novel"].items():
        for who, scores in row.items():
            halves = harmonic_mean([scores["base"], scores["novel"]])
            # it prints means over seeds, so that they differ a little; most for UCF101
            assert scores["hm"] == pytest.approx(halves, abs=0.3), (name, who)


@pytest.mark.parametrize("protocol", [Protocol.CROSS_DATASET, Protocol.DOMAIN_GENERALISATION])
def test_the_papers_averages_are_those_of_its_data_sets(protocol: Protocol) -> None:
    rows = {**paper()[protocol]}
    averages = rows.pop(AVERAGE)
    for who, scores in averages.items():
        mean = fmean(row[who]["accuracy"] for row in rows.values())
        assert scores["accuracy"] == pytest.approx(mean, abs=0.011), who


def test_the_paper_has_ten_targets_and_four_variants_of_its_source() -> None:
    assert set(targets(Protocol.CROSS_DATASET)) == set(ELEVEN) - {"imagenet"}
    variants = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert targets(Protocol.DOMAIN_GENERALISATION) == variants


def test_the_papers_average_across_data_sets_needs_all_of_them() -> None:
    protocol = Protocol.CROSS_DATASET
    shared = targets(protocol)
    ours = dict.fromkeys(PUBLISHED, {"accuracy": 70.0, "accuracy_std": 0.5})
    for run, complete in ((shared, True), (shared[1:], False), ([*shared, "my_own"], False)):
        measured = {"datasets": dict.fromkeys(run, ours), "average": ours}
        beside_theirs = across({protocol: measured}, "imagenet", ELEVEN)[protocol]
        *rows, average = beside_theirs["student"]
        assert (average.ours is not None) is complete
        assert rows[1].difference == {"accuracy": -21.59}
        assert rows[1].spread == {"accuracy": 0.5}


def test_what_was_not_run_has_no_number_of_ours() -> None:
    rows = beside(NOTHING, ELEVEN)["student"]
    assert [row.dataset for row in rows] == [*ELEVEN, AVERAGE]
    assert rows[ELEVEN.index("dtd")].paper == {"base": 85.84, "novel": 71.37, "hm": 77.94}
    others = [row for models in across({}, None, ELEVEN).values() for row in models["student"]]
    assert others
    assert all(row.ours is None and row.difference is None for row in (*rows, *others))


def test_what_was_run_stands_beside_the_paper_with_the_difference() -> None:
    rows = {one.dataset: one for one in beside(summary("dtd"), ELEVEN)["student"]}
    assert rows["dtd"].ours == OURS
    assert rows["dtd"].difference == {"base": -5.84, "novel": -1.37, "hm": -3.27}
    assert rows["eurosat"].ours is None


def test_the_papers_average_has_no_average_of_fewer_data_sets_beside_it() -> None:
    some = beside(summary(*ELEVEN[1:]), ELEVEN)["student"][-1]
    everything = beside(summary(*ELEVEN), ELEVEN)["student"][-1]
    more = beside(summary(*ELEVEN, "my_own"), [*ELEVEN, "my_own"])["student"][-1]
    assert some.dataset == everything.dataset == more.dataset == AVERAGE
    assert some.ours is None
    assert more.ours is None
    assert everything.ours == OURS


def test_data_sets_that_the_paper_has_not_have_nothing_beside_them() -> None:
    assert beside(summary("embedded_greek"), ["embedded_greek"]) == {}


def test_accuracy_on_all_classes_is_not_compared_with_halves() -> None:
    taught = {"datasets": {"dtd": dict.fromkeys(PUBLISHED, {"all": 60.0})}, "average": {}}
    rows = {one.dataset: one for one in beside(taught, ELEVEN)["student"]}
    assert rows["dtd"].ours is None
