"""The ablations' files: what a variant changes, what a table shows, what runs again when."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from facts import facts
from ruamel.yaml import YAML

from pd_core.core.errors import PdError
from pd_core.evaluation import evaluate, tuned_student
from pd_core.pipeline.ablations import (
    BASES,
    FOLDER,
    REPORT,
    RESULTS,
    AblationParams,
    Variant,
    load_ablations,
)
from pd_core.pipeline.stages.params import DatasetParams, DatasetRow, Params

ROOT = Path(__file__).parents[2]
FILE = ROOT / FOLDER / "params.yaml"
STAGES = tuple(DatasetRow.model_fields)


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


SHIPPED: dict[str, Any] = read_yaml(FILE)
PIPELINE: dict[str, Any] = read_yaml(ROOT / FOLDER / "dvc.yaml")["stages"]
VARIANTS: dict[str, dict[str, Any]] = SHIPPED["variants"]
ROWS: list[tuple[str, dict[str, Any]]] = [
    (table["title"], row) for table in SHIPPED["tables"] for row in table["rows"]
]


@pytest.fixture(scope="module")
def shipped() -> tuple[AblationParams, Params]:
    return load_ablations(FILE)


def values(params: DatasetParams, stage: str) -> dict[str, Any]:
    """Return a stage's numbers as they stand in a file."""
    block: dict[str, Any] = getattr(params, stage).model_dump(mode="json", exclude_unset=True)
    return block


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_names_and_nothing_else(
    shipped: tuple[AblationParams, Params], name: str
) -> None:
    params, profile = shipped
    named = {stage: keys for stage in STAGES if (keys := VARIANTS[name].get(stage))}
    assert params.variant(name).changed == set(named)
    for dataset in params.datasets:
        default = params.for_dataset(profile, dataset)
        mine = params.for_dataset(profile, dataset, name)
        assert default == profile.for_dataset(dataset)
        changes = {
            stage: {
                key: value
                for key, value in values(mine, stage).items()
                if value != values(default, stage)[key]
            }
            for stage in STAGES
        }
        assert {stage: keys for stage, keys in changes.items() if keys} == named
        assert (mine.name, mine.run) == (default.name, default.run)
        assert (mine.tuned_student is not None) == VARIANTS[name].get("baseline", False)


def test_the_baseline_is_the_teachers_tuning_of_the_students_clip(
    shipped: tuple[AblationParams, Params],
) -> None:
    params, profile = shipped
    for dataset in params.datasets:
        mine = params.for_dataset(profile, dataset, "tuned_student")
        student = {"model": mine.student.model, "weights": mine.student.weights}
        assert mine.tuned_student == mine.teacher.model_copy(update=student)


def test_a_variant_goes_before_the_data_sets_own_numbers_and_leaves_the_others(
    shipped: tuple[AblationParams, Params],
) -> None:
    params, profile = shipped
    name, variant = "embedded_digits", Variant(teacher={"batch_size": 2})
    changed = params.model_copy(update={"variants": {"small": variant}})
    before = params.for_dataset(profile, name).teacher

    after = changed.for_dataset(profile, name, "small").teacher

    assert before.batch_size != profile.teacher.batch_size != after.batch_size
    assert after == before.model_copy(update={"batch_size": 2})


def test_every_variant_differs_is_shown_and_measures_what_is_shown() -> None:
    assert len({json.dumps(keys, sort_keys=True) for keys in VARIANTS.values()}) == len(VARIANTS)
    assert {row["variant"] for _, row in ROWS} == set(VARIANTS)
    for title, row in ROWS:
        keys = VARIANTS[row["variant"]]
        measured = ["student", *(["teacher"] if "teacher" in keys else [])]
        if not keys:
            measured = list(evaluate.MODELS)
        elif keys.get("baseline"):
            measured = [tuned_student.MODEL]
        assert row.get("who", "student") in measured, title


def test_every_table_shows_its_reference_over_the_papers_three_seeds(
    shipped: tuple[AblationParams, Params],
) -> None:
    assert shipped[0].seeds == (1, 2, 3)
    for table in shipped[0].tables:
        assert table.reference_row.variant == table.reference == "promptkd"
        assert len({row.label for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize(
    ("title", "stage", "key"),
    [
        ("Layers of the projector", "student", "projector_layers"),
        ("Temperature", "student", "temperature"),
        ("Epochs", "student", "epochs"),
        ("Unlabelled images per class", "prepare", "unlabelled_per_class"),
    ],
)
def test_labels_name_the_number_that_was_used(
    shipped: tuple[AblationParams, Params], title: str, stage: str, key: str
) -> None:
    params, profile = shipped
    for row in (row for heading, row in ROWS if heading == title):
        value = values(params.for_dataset(profile, params.datasets[0], row["variant"]), stage)[key]
        assert row["label"].split()[0] == ("all" if value is None else f"{value:g}")


def test_labels_name_the_default(shipped: tuple[AblationParams, Params]) -> None:
    params, profile = shipped
    default = profile.for_dataset(params.datasets[0])
    labelled = [(row, re.search(r"(\S+) \(default: (\S+)\)", row["label"])) for _, row in ROWS]
    matches = [(VARIANTS[row["variant"]]["student"], label) for row, label in labelled if label]
    assert len(matches) == 4
    for keys, label in matches:
        ((key, value),) = keys.items()
        assert label.groups() == (f"{value:g}", f"{values(default, 'student')[key]:g}")


def test_the_papers_figures_are_the_papers() -> None:
    paper = facts("paper")
    figures = paper["ablations"]
    form, method = figures["distillation_form"], figures["distillation_method"]
    teachers, images = figures["teacher_pretraining"], figures["images_per_class"]
    size, average = figures["teacher_backbone_student_hm"], paper["base_to_novel"]["average"]
    expected = {
        ("Form of the distillation", "features_l1"): form["feature_l1"],
        ("Form of the distillation", "features_mse"): form["feature_mse"],
        ("Form of the distillation", "promptkd"): form["logit_kl"],
        ("What is trained", "promptkd", "zero_shot_student"): method["clip"],
        ("What is trained", "projector_only"): method["projector_only"],
        ("What is trained", "full_finetune"): method["full_fine_tune"],
        ("What is trained", "own_text_features"): method["without_shared_text_features"],
        ("What is trained", "promptkd"): method["promptkd"],
        ("Main baseline", "tuned_student", "tuned_student"): list(average["PromptSRC"].values()),
        ("Main baseline", "promptkd"): list(average["PromptKD"].values()),
        ("Size of the teacher", "teacher_small"): size["ViT-B/16"],
        ("Size of the teacher", "promptkd"): size["ViT-L/14"],
        ("Unlabelled images per class", "images_3"): images["16"],
        ("Unlabelled images per class", "images_6"): images["64"],
        ("Unlabelled images per class", "images_12"): images["256"],
        ("Unlabelled images per class", "promptkd"): images["full"],
    }
    for name, variant in (("clip", "teacher_clip"), ("maple", "teacher_maple")):
        expected["Teachers", variant, "teacher"] = teachers[name]["teacher"]
        expected["Students of these teachers", variant] = teachers[name]["student"]
    expected["Teachers", "promptkd", "teacher"] = teachers["promptsrc"]["teacher"]
    expected["Students of these teachers", "promptkd"] = teachers["promptsrc"]["student"]
    for title, key, names in (
        ("Layers of the projector", "projector_layers", {"1": "projector_1", "3": "projector_3"}),
        (
            "Temperature",
            "temperature",
            {"0.1": "temperature_01", "0.5": "temperature_05", "2": "temperature_2"},
        ),
        ("Epochs", "epochs", {"40": "epochs_24", "60": "epochs_36"}),
    ):
        for number, values_ in figures[key].items():
            expected[title, names.get(number, "promptkd")] = values_
    written = {
        (title.split(",")[0], row["variant"], *([row["who"]] if "who" in row else [])): row["paper"]
        for title, row in ROWS
        if "paper" in row
    }
    assert written == expected


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"variant: features_l1", "variant: features_11", "'features_11'; did you mean 'feature"),
        (
            r"projector_1: .*",
            "projector_1: {student: {layers: 1}}",
            "ts.projector_1.student.layers'; known",
        ),
        (r"projector_layers: 1", "projector_layers: 4", "projector_1.*less than or equal to 3"),
        (r"baseline: true", "baseline: 3", "variants.tuned_student.baseline = 3: .*boolean"),
        (r"^datasets: .*", "datasets: [embedded_grek]", "'embedded_grek'; did you mean 'embedd"),
        (r"^seeds: .*", "seeds: []", "seeds"),
        (r"reference: promptkd", "reference: promtkd", "reference 'promtkd'"),
        (r"who: teacher,", "who: teachr,", "'?teachr'?.* 'teacher'"),
        (r"paper: 74.09", "paper: 740.9", "tables.5.rows.0.paper"),
        (r"^profile: .*", "profile: ../nothing.yaml", r"\.\./nothing.yaml"),
    ],
)
def test_a_mistake_in_the_file_gets_one_line(
    tmp_path: Path, pattern: str, replacement: str, message: str
) -> None:
    text, count = re.subn(pattern, replacement, FILE.read_text(), count=1, flags=re.M)
    assert count == 1
    path = tmp_path / FOLDER / "params.yaml"
    path.parent.mkdir()
    path.write_text(text)
    shutil.copy(ROOT / "params.yaml", tmp_path)

    with pytest.raises(PdError, match=message) as caught:
        load_ablations(path)

    assert "\n" not in str(caught.value)


def test_dvc_has_a_stage_for_every_data_set_and_every_variant() -> None:
    for stage, source, item in (("base", "datasets", "item"), ("variant", "variants", "key")):
        block = PIPELINE[stage]
        assert block["foreach"] == f"${{{source}}}"
        assert len(set(SHIPPED[source])) == len(SHIPPED[source])
        assert block["do"]["cmd"].endswith(f"pd_core ablation {stage} ${{{item}}}")


def test_dvc_keeps_what_the_verbs_write() -> None:
    for stage, place in (("base", BASES / "${item}"), ("variant", RESULTS / "${key}")):
        assert PIPELINE[stage]["do"]["outs"] == [place.relative_to(FOLDER).as_posix()]
    ((out, _),) = (pair for block in PIPELINE["report"]["outs"] for pair in block.items())
    assert (ROOT / FOLDER / out).resolve() == ROOT / REPORT
    assert BASES.relative_to(FOLDER).as_posix() in deps("variant")
    assert RESULTS.relative_to(FOLDER).as_posix() in deps("report")


def test_dvc_watches_the_weights_and_the_numbers(shipped: tuple[AblationParams, Params]) -> None:
    params, profile = shipped
    for name in params.datasets:
        base = params.for_dataset(profile, name)
        assert f"../{base.teacher.weights}" in deps("base")
        for variant in VARIANTS:
            mine = params.for_dataset(profile, name, variant)
            assert {f"../{part.weights}" for part in (mine.teacher, mine.student)} <= set(
                deps("variant")
            )
    watched = {stage: numbers(stage) for stage in PIPELINE if stage != "code"}
    assert watched["base"] >= {"seeds", "run.threads", "prepare", "teacher.lr", "datasets.${item}"}
    assert watched["variant"] >= {"seeds", "datasets", "variants.${key}", "run.threads"}
    blocks = {key.partition(".")[0] for key in watched["variant"]}
    assert blocks >= set(STAGES) - {"class_vectors"}  # which has no keys
    assert watched["report"] == {"seeds", "datasets", "tables"}


def deps(stage: str) -> list[str]:
    listed: list[str] = PIPELINE[stage].get("do", PIPELINE[stage])["deps"]
    return listed


def numbers(stage: str) -> set[str]:
    """Return the keys that a stage watches, of either file."""
    watched = set()
    for entry in PIPELINE[stage].get("do", PIPELINE[stage]).get("params", []):
        watched |= set(entry[SHIPPED["profile"]]) if isinstance(entry, dict) else {entry}
    return watched
