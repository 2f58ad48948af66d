"""The protocols' summary holds what other libraries compute from the same files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from protocol_runs import DATASETS, SEEDS, SOURCE, Run, Scores, path_of, put, write_all
from scipy import stats

from pd_core.core.errors import BadArtifact, BadParams, MissingFile
from pd_core.data.loading.splits import Protocol
from pd_core.reporting import protocol_report
from pd_core.reporting.results import MODELS

Written = dict[Run, dict[str, Scores]]
KEYS = ("base", "novel", "hm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def written(folder: Path) -> Written:
    return write_all(folder)


def read(folder: Path, **changes: Any) -> dict[Protocol, protocol_report.Runs]:
    options: dict[str, Any] = {"datasets": DATASETS, "seeds": SEEDS, "source": SOURCE}
    return protocol_report.read(folder, **options | changes)


def summary(folder: Path, **changes: Any) -> dict[str, Any]:
    return protocol_report.summarise("quickstart", read(folder, **changes), SOURCE)


def numbers(written: Written, protocol: Protocol, who: str, key: str) -> NDArray[np.float64]:
    """(data sets, seeds), in the order of their names."""
    names = sorted(DATASETS[protocol])
    return np.array([[written[protocol, name, seed][who][key] for seed in SEEDS] for name in names])


def test_the_summary_has_the_documented_keys(folder: Path, written: Written) -> None:
    found = summary(folder)
    assert {key: found[key] for key in ("profile", "seeds", "source")} == {
        "profile": "quickstart",
        "seeds": [1, 2, 3],
        "source": "latin",
    }
    assert list(found["protocols"]) == list(DATASETS)
    for protocol, names in DATASETS.items():
        part = found["protocols"][protocol]
        assert set(part) == {"datasets", "average", "differences", "outliers", "runs"}
        assert list(part["datasets"]) == list(part["runs"]) == sorted(names)
        keys = KEYS if protocol is Protocol.BASE_TO_NOVEL else ("accuracy",)
        for row in (*part["datasets"].values(), part["average"]):
            assert list(row) == list(MODELS)
            every = {f"{key}{more}" for key in keys for more in ("", "_std", "_n")}
            assert all(set(scores) == every for scores in row.values())
        for seeds in part["runs"].values():
            assert list(seeds) == ["1", "2", "3"]
            assert all(
                set(scores) == set(keys) for run in seeds.values() for scores in run.values()
            )
    assert written


def test_mean_and_deviation_of_a_data_set_are_over_its_seeds(
    folder: Path, written: Written
) -> None:
    part = summary(folder)["protocols"]["base_to_novel"]
    for who in MODELS:
        for key in KEYS:
            values = numbers(written, Protocol.BASE_TO_NOVEL, who, key)
            for row, name in zip(values, sorted(DATASETS[Protocol.BASE_TO_NOVEL]), strict=True):
                scores = part["datasets"][name][who]
                assert scores[key] == round(float(row.mean()), 2)
                assert scores[f"{key}_std"] == round(float(row.std(ddof=1)), 2)
                assert scores[f"{key}_n"] == 3


def test_the_other_protocols_tell_the_accuracy_on_all_classes(
    folder: Path, written: Written
) -> None:
    values = numbers(written, Protocol.CROSS_DATASET, "student", "all")
    found = summary(folder)["protocols"]["cross_dataset"]["datasets"]["greek"]["student"]
    assert found["accuracy"] == round(float(values[1].mean()), 2)
    assert found["accuracy_std"] == round(float(values[1].std(ddof=1)), 2)


def test_the_average_is_taken_within_each_seed_and_its_harmonic_mean_is_of_the_averages(
    folder: Path, written: Written
) -> None:
    base, novel = (
        numbers(written, Protocol.BASE_TO_NOVEL, "student", key).mean(axis=0)
        for key in ("base", "novel")
    )
    found = summary(folder)["protocols"]["base_to_novel"]["average"]["student"]
    for key, seeds in (
        ("base", base),
        ("novel", novel),
        ("hm", stats.hmean(np.stack([base, novel]))),
    ):
        assert found[key] == round(float(seeds.mean()), 2)
        assert found[f"{key}_std"] == round(float(seeds.std(ddof=1)), 2)


def test_the_averages_harmonic_mean_is_that_of_the_papers_table_1(folder: Path) -> None:
    halves = {"arrows": (90.0, 80.0, 84.71), "greek": (83.92, 81.46, 1.0)}
    for name, values in halves.items():
        scores = dict(zip(KEYS, values, strict=True))
        put(folder, (Protocol.BASE_TO_NOVEL, name, 1), dict.fromkeys(MODELS, scores))
    found = summary(folder, datasets={Protocol.BASE_TO_NOVEL: list(halves)}, seeds=[1])
    average = found["protocols"]["base_to_novel"]["average"]
    assert average["student"] == {"base": 86.96, "novel": 80.73, "hm": 83.73}


@pytest.mark.parametrize("protocol", [Protocol.BASE_TO_NOVEL, Protocol.DOMAIN_GENERALISATION])
def test_differences_are_paired_by_seed_and_tested_over_data_sets(
    folder: Path, written: Written, protocol: Protocol
) -> None:
    found = summary(folder)["protocols"][protocol]["differences"]
    assert [(one["first"], one["second"]) for one in found] == [
        ("student", "zero_shot_student"),
        ("student", "teacher"),
        ("teacher", "zero_shot_teacher"),
        ("student", "zero_shot_teacher"),
    ]
    key, name = ("hm", "hm") if protocol is Protocol.BASE_TO_NOVEL else ("all", "accuracy")
    for one in found:
        first, second = (numbers(written, protocol, one[who], key) for who in ("first", "second"))
        apart = first - second
        assert one["key"] == name
        assert (one["datasets"], one["seeds"]) == (len(DATASETS[protocol]), 3)
        assert one["difference"] == round(float(apart.mean()), 2)
        assert one["difference_std"] == round(float(apart.mean(axis=0).std(ddof=1)), 2)
        p = stats.wilcoxon(apart.mean(axis=1), method="exact").pvalue
        assert one["p"] == float(f"{p:.4g}")


def test_a_single_data_set_has_a_difference_without_p(folder: Path, written: Written) -> None:
    found = summary(folder)["protocols"]["all_classes"]["differences"][0]
    assert (found["datasets"], found["p"]) == (1, None)
    assert found["difference"] > 20
    assert written


def test_a_single_seed_has_no_deviation_and_no_count(folder: Path, written: Written) -> None:
    found = summary(folder, seeds=[2])
    assert found["seeds"] == [2]
    for part in found["protocols"].values():
        for row in (*part["datasets"].values(), part["average"]):
            assert all(set(scores) in ({*KEYS}, {"accuracy"}) for scores in row.values())
        assert all("difference_std" not in one for one in part["differences"])
        assert part["outliers"] == []
    assert written


def test_a_seed_ten_points_off_is_named_with_what_the_others_say(
    folder: Path, written: Written
) -> None:
    run = (Protocol.DOMAIN_GENERALISATION, "latin_neon", 2)
    wild = {who: dict(scores) for who, scores in written[run].items()}
    wild["student"]["all"] = 58.0
    put(folder, run, wild)
    found = summary(folder)["protocols"]
    others = np.mean([written[(*run[:2], seed)]["student"]["all"] for seed in (1, 3)])
    assert found["domain_generalisation"]["outliers"] == [
        {
            "dataset": "latin_neon",
            "who": "student",
            "seed": 2,
            "key": "accuracy",
            "value": 58.0,
            "others": round(float(others), 2),
            "deviation": round(58 - float(others), 2),
        }
    ]
    assert all(
        part["outliers"] == []
        for protocol, part in found.items()
        if protocol != "domain_generalisation"
    )


def test_runs_are_kept_with_two_decimals(folder: Path, written: Written) -> None:
    found = summary(folder)["protocols"]["all_classes"]["runs"]["latin"]["3"]
    for who in MODELS:
        expected = round(written[Protocol.ALL_CLASSES, "latin", 3][who]["all"], 2)
        assert found[who] == {"accuracy": expected}


def test_the_order_of_data_sets_and_seeds_does_not_matter(folder: Path, written: Written) -> None:
    turned = {protocol: names[::-1] for protocol, names in reversed(DATASETS.items())}
    assert read(folder, datasets=turned, seeds=SEEDS[::-1]) == read(folder)
    assert str(summary(folder, datasets=turned, seeds=SEEDS[::-1])) == str(summary(folder))
    assert written


def test_protocols_without_data_sets_and_a_source_that_nobody_uses_are_left_out(
    folder: Path, written: Written
) -> None:
    found = summary(folder, datasets={Protocol.ALL_CLASSES: ["latin"], Protocol.CROSS_DATASET: []})
    assert list(found["protocols"]) == ["all_classes"]
    assert "source" not in found
    assert written


@pytest.mark.parametrize(
    "run", [(Protocol.BASE_TO_NOVEL, "greek", 2), (Protocol.CROSS_DATASET, "arrows", 3)]
)
def test_a_missing_run_names_the_stage_to_run(folder: Path, written: Written, run: Run) -> None:
    protocol, name, seed = run
    path_of(folder, run).unlink()
    with pytest.raises(MissingFile, match=f"seed {seed} not found.*`dvc repro {protocol}@{name}-"):
        read(folder)
    assert written


@pytest.mark.parametrize("value", [101, -1, "high", True, None, float("nan"), [1]])
def test_a_number_that_is_no_percentage_is_refused(
    folder: Path, written: Written, value: Any
) -> None:
    run = (Protocol.ALL_CLASSES, "latin", 1)
    put(folder, run, written[run] | {"teacher": {"all": value}})
    with pytest.raises(BadArtifact, match=r"teacher.all.*`dvc repro all_classes@latin-1`"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"student": 3}'])
def test_a_damaged_file_names_the_stage_to_run(folder: Path, written: Written, text: str) -> None:
    path_of(folder, (Protocol.BASE_TO_NOVEL, "greek", 1)).write_text(text)
    with pytest.raises(BadArtifact, match=r"`dvc repro base_to_novel@greek-1`"):
        read(folder)
    assert written


def test_accuracy_on_all_classes_is_no_result_of_base_to_novel(
    folder: Path, written: Written
) -> None:
    put(folder, (Protocol.BASE_TO_NOVEL, "greek", 1), written[Protocol.ALL_CLASSES, "latin", 1])
    with pytest.raises(BadArtifact, match=r"has no number 'zero_shot_student\.base'"):
        read(folder)


@pytest.mark.parametrize(
    "nothing", [{"datasets": {}}, {"datasets": {Protocol.ALL_CLASSES: []}}, {"seeds": []}]
)
def test_no_data_set_or_no_seed_is_refused(folder: Path, nothing: dict[str, Any]) -> None:
    with pytest.raises(BadParams, match="at least one data set and one seed"):
        read(folder, **nothing)


def test_a_protocol_with_a_source_needs_one(folder: Path, written: Written) -> None:
    with pytest.raises(BadParams, match="'cross_dataset' needs a source"):
        read(folder, source=None)
    assert written
