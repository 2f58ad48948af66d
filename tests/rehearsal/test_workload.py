"""The units of work of a stage follow from its parameters and the data set's sizes."""

from pathlib import Path
from typing import Any

import pytest

from pd_core.data.catalog.catalogue import dataset_spec
from pd_core.pipeline.stages.params import DatasetParams, DatasetRow, load_params
from pd_core.rehearsal.workload import Load, Sizes, load_of, published_sizes

ROOT = Path(__file__).parents[2]
SIZES = Sizes(classes=47, taught=24, few_shot=384, unlabelled=2820, test=1692, images=5640)


def params(name: str = "dtd", **rows: dict[str, Any]) -> DatasetParams:
    return load_params(ROOT / "paper" / "params.yaml").for_dataset(name, DatasetRow(**rows))


def test_the_sizes_of_dtd_are_those_of_the_paper() -> None:
    sizes = published_sizes(dataset_spec("dtd"), params().prepare, "test")

    assert sizes == SIZES


def test_few_images_a_class_shorten_the_unlabelled_list() -> None:
    prepare = params(prepare={"unlabelled_per_class": 16}).prepare

    assert published_sizes(dataset_spec("dtd"), prepare, "test").unlabelled == 16 * 47


def test_a_variant_of_imagenet_is_distilled_on_its_test_images_without_labels() -> None:
    config = params("imagenet").prepare.model_copy(
        update={"protocol": "domain_generalisation", "transductive": True}
    )

    sizes = published_sizes(dataset_spec("imagenet_a"), config, "test")

    assert (sizes.taught, sizes.few_shot, sizes.unlabelled, sizes.test) == (0, 0, 7500, 7500)


def test_a_teacher_has_full_batches_and_encodes_its_templates_before() -> None:
    load = load_of("teacher", params(), SIZES)

    assert load == Load(
        start=61 * 24, step=24, live=20 * 96, recalled=0, epochs=20, checked=256 / 4
    )


def test_views_that_come_again_are_computed_once() -> None:
    load = load_of("student", params(student={"view_epochs": 4}), SIZES)

    assert (load.live, load.recalled, load.recorded) == (4 * 352, 16 * 352, 0)


def test_cached_targets_are_recorded_before_all_steps() -> None:
    load = load_of("student", params(student={"teacher_targets": "cached"}), SIZES)

    assert (load.live, load.recalled, load.recorded) == (0, 20 * 352, 20 * 352)


def test_a_teacher_that_is_not_tuned_takes_no_steps() -> None:
    assert load_of("teacher", params(teacher={"method": "clip"}), SIZES) == Load()


def test_the_baseline_is_tuned_and_classifies_the_test_images() -> None:
    load = load_of("tuned_student", params(), SIZES)

    assert (load.live, load.images) == (20 * 96, 1692)


def test_a_stage_that_cannot_be_measured_is_refused() -> None:
    with pytest.raises(KeyError):
        load_of("report", params(), SIZES)


def test_there_are_no_more_shots_than_images_of_a_class() -> None:
    prepare = params(prepare={"shots": 100}).prepare

    assert published_sizes(dataset_spec("dtd"), prepare, "test").few_shot == 24 * 60
