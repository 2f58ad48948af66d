"""What holds of all parameters: an override changes its own key, and nothing passes unknown."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pd_core.core.errors import BadParams
from pd_core.pipeline.stages.params import DatasetRow, Params, load_params, validate

SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml")
DATASET = "embedded_digits"
STAGES = ("prepare", "teacher", "class_vectors", "student", "evaluate")

examples = settings(max_examples=40)
examples_of_files = settings(max_examples=25)

positive = st.floats(1e-6, 1e3)
VALUES: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("prepare", "shots"): st.integers(1, 100),
    ("prepare", "protocol"): st.sampled_from(["base_to_novel", "all_classes"]),
    ("prepare", "unlabelled_per_class"): st.none() | st.integers(1, 100),
    ("prepare", "transductive"): st.booleans(),
    ("teacher", "lr"): positive,
    ("teacher", "epochs"): st.integers(1, 1000),
    ("teacher", "method"): st.sampled_from(["promptsrc", "ivlp", "maple", "coop", "clip"]),
    ("teacher", "flip"): st.booleans(),
    ("teacher", "crop_scale"): st.floats(0.01, 1).map(lambda least: [least, 1.0]),
    ("student", "momentum"): st.floats(0, 0.99),
    ("student", "kd_weight"): positive,
    # Characters that YAML 1.2 lets stand in a text as they are.
    ("student", "weights"): st.none() | st.text(st.characters(categories=["L", "N", "P", "S"])),
    ("student", "further_teachers"): st.lists(st.just({"folder": "data/teacher/other"})),
    ("evaluate", "folds"): st.integers(2, 9),
}
KEYS = st.sampled_from(sorted(VALUES))


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Draw values for some keys of some stages."""
    rows: dict[str, dict[str, Any]] = {}
    for stage, key in draw(st.lists(KEYS, unique=True)):
        rows.setdefault(stage, {})[key] = draw(VALUES[stage, key])
    return rows


def with_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shipped file's content with one data set's row replaced."""
    content = SHIPPED.model_dump(mode="json")
    return {**content, "datasets": {**content["datasets"], DATASET: dict(row)}}


def load(content: Mapping[str, Any]) -> Params:
    """Read the content from a file; JSON is YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return load_params(path)


def leaves(value: object, *where: str) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, *where, key)
    else:
        yield where, value


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[tuple[str, ...]]:
    before, after = dict(leaves(first)), dict(leaves(second))
    return {key for key in before | after if before.get(key) != after.get(key)}


@examples
@given(place=KEYS, data=st.data())
def test_an_override_changes_exactly_its_key(place: tuple[str, str], data: st.DataObject) -> None:
    stage, key = place
    value = data.draw(VALUES[place])
    plain = SHIPPED.for_dataset(DATASET).model_dump(mode="json")

    changed = SHIPPED.for_dataset(DATASET, DatasetRow(**{stage: {key: value}}))

    dumped = changed.model_dump(mode="json")
    assert differences(plain, {**dumped, stage: {**dumped[stage], key: plain[stage][key]}}) == set()
    if stage != "student" or key != "further_teachers":  # whose entries have further keys
        assert dumped[stage][key] == value


@examples
@given(rows=overrides())
def test_a_data_set_without_overrides_has_the_stages_own_values(
    rows: dict[str, dict[str, Any]],
) -> None:
    params = validate(Params, with_row(rows))
    others = [
        name
        for name in params.datasets
        if name != DATASET and not any(getattr(params.datasets[name], stage) for stage in STAGES)
    ]

    assert others
    for name in others:
        resolved = params.for_dataset(name)
        assert all(getattr(resolved, stage) == getattr(params, stage) for stage in STAGES)


@examples
@given(first=overrides(), second=overrides())
def test_further_overrides_go_before_the_data_sets_own(
    first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> None:
    stages = {*first, *second}
    merged = {stage: {**second.get(stage, {}), **first.get(stage, {})} for stage in stages}

    resolved = validate(Params, with_row(second)).for_dataset(DATASET, DatasetRow(**first))

    assert resolved == validate(Params, with_row(merged)).for_dataset(DATASET)


@examples_of_files
@given(rows=overrides())
def test_parameters_that_were_written_come_back_the_same(rows: dict[str, dict[str, Any]]) -> None:
    params = validate(Params, with_row(rows))

    loaded = load(params.model_dump(mode="json"))

    assert loaded == params
    assert loaded.for_dataset(DATASET) == params.for_dataset(DATASET)


@examples_of_files
@given(
    key=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1),
    block=st.sampled_from(
        [(), ("run",), ("teacher",), ("datasets", DATASET), ("datasets", DATASET, "student")]
    ),
    value=st.none() | st.integers() | st.text(st.characters(categories=["L"])),
)
def test_an_unknown_key_is_refused_wherever_it_stands_and_whatever_it_is(
    key: str, block: tuple[str, ...], value: object
) -> None:
    content = with_row({})
    place = content
    for part in block:
        place = place.setdefault(part, {})
    assume(key not in place)
    place[key] = value

    with pytest.raises(BadParams, match="unknown key") as caught:
        load(content)

    assert key in str(caught.value)
