"""Every option of the student's distillation has its effect, and no other."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import trainings
from miniatures import prepare_config
from tiny import NAMES, images
from torch import Tensor, nn

from pd_core.core.artifacts import read_json, read_tensors
from pd_core.core.errors import BadData, BadParams
from pd_core.core.options import Form, Selection, TextFeatures, Trained
from pd_core.data.catalog import prepare
from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import eval_transform
from pd_core.data.loading.prepared import read_unlabelled, write_prepared
from pd_core.data.loading.splits import Item, Splits
from pd_core.mlops.predictor import load_student
from pd_core.models import class_vectors
from pd_core.models.class_vectors import ClassVectors, for_student
from pd_core.models.clip import ClipTowers
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.student.distillation import make_scorer
from pd_core.training.student.targets import check_form

FEATURES = [Form.FEATURES_L1, Form.FEATURES_MSE]
ON_TEST = Selection.BEST_ON_TEST_AS_PUBLISHED
LISTS = ("few_shot", "few_shot_val", "val", "test")

PREPROCESS = Preprocess(16)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages("training.student.stage", "evaluation.evaluate", "mlops.predictor"):
        yield


def small() -> ClipTowers:
    return tiny.towers("small", joint_width=8, seed=1)


def teacher() -> Teacher:
    return Teacher.untrained(tiny.towers(), text_depth=2, image_depth=2, seed=3).eval()


def vectors() -> ClassVectors:
    return class_vectors.build(teacher(), NAMES)


def distilled(**options: Any) -> tuple[Student, list[dict[str, float]]]:
    options = {"batches": tiny.Batches(8, size=8), "epochs": 1, **options}
    return trainings.distill(small(), teacher(), vectors(), **options)


def fresh(**options: Any) -> Student:
    return Student.untrained(small(), **{"feature_width": 16, **options}).train()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def stored(student: Student, folder: Path) -> Student:
    """Store a student, join it to the base weights again, and look whether it sees the same."""
    student.save(folder / "student.safetensors")
    read = Student.load(folder / "student.safetensors", small())
    with torch.no_grad():
        assert torch.equal(read(images(3)), student(images(3)))
    return read


@torch.no_grad()
def by_hand(width: int = 16) -> tuple[Tensor, Tensor]:
    """Compute the features of an untrained student and of its teacher."""
    return fresh(feature_width=width)(images(8)), teacher().image_features(images(8))


def divergence(student: Tensor, classes: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    p = (teacher().logit_scale * target @ vectors().vectors.T / temperature).softmax(dim=1)
    q = (small().logit_scale * student @ classes.T / temperature).softmax(dim=1)
    return float((p * (p / q).log()).sum()) / (8 * len(NAMES))


def agreement(student: Tensor, classes: Tensor, target: Tensor) -> float:
    equal = (student @ classes.T).argmax(dim=1) == (target @ vectors().vectors.T).argmax(dim=1)
    return 100 * float(equal.float().mean())


def stop(epoch: int, _: dict[str, float]) -> None:
    if epoch == 2:
        raise KeyboardInterrupt


def test_the_papers_student_imitates_the_predictions_of_one_teacher() -> None:
    block = trainings.PAPER.student

    assert (block.form, block.kd_weight) == (Form.LOGITS_KL, 1000)
    assert block.further_teachers == ()


@pytest.mark.parametrize("form", FEATURES)
def test_features_are_imitated_by_their_mean_distance(form: Form) -> None:
    student, target = by_hand()
    distance = (student - target).abs() ** (1 if form is Form.FEATURES_L1 else 2)

    _, history = distilled(form=form, kd_weight=30.0)

    assert history[0]["loss"] == pytest.approx(30 * float(distance.sum()) / (8 * 16), rel=1e-4)
    assert history[0]["agreement"] == pytest.approx(agreement(student, vectors().vectors, target))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_predictions_are_imitated_at_a_temperature(temperature: float) -> None:
    student, target = by_hand()

    _, history = distilled(temperature=temperature, kd_weight=20.0)

    expected = 20 * temperature**2 * divergence(student, vectors().vectors, target, temperature)
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert history[0]["agreement"] == pytest.approx(agreement(student, vectors().vectors, target))


@pytest.mark.parametrize("form", list(Form))
def test_gradients_reach_the_student_and_not_the_teacher(form: Form) -> None:
    untouched, student = teacher(), fresh()
    features = untouched.image_features(images(8))
    targets = vectors().logits(features) if form is Form.LOGITS_KL else features
    assert targets.requires_grad

    step = trainings.distillation_step(student, images(8), targets, vectors(), form=form)
    torch.autograd.backward(step.loss)

    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in untouched.parameters())


@pytest.mark.parametrize("form", FEATURES)
def test_features_are_refused_where_there_is_no_one_feature_to_imitate(form: Form) -> None:
    with pytest.raises(BadParams, match=f"{form} .* set student.text_features: teacher"):
        check_form(trainings.student_config(form=form, text_features=TextFeatures.STUDENT))
    with pytest.raises(BadParams, match=rf"{form} .* set student.further_teachers: \[\]"):
        check_form(trainings.student_config(form=form, further_teachers=[{}]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_projector_has_so_many_layers(layers: int, tmp_path: Path) -> None:
    student, _ = distilled(projector_layers=layers)

    for projector in (student.projector, stored(student, tmp_path).projector):
        linear = [part for part in projector if isinstance(part, nn.Linear)]
        assert [part.in_features for part in linear] == [8, 16, 16][:layers]
        assert [part.out_features for part in linear] == [16] * layers
        kinds = [type(part) for part in projector]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1) + [nn.Linear]


def test_no_other_number_of_layers_will_do() -> None:
    for layers in (0, 4):
        with pytest.raises(BadParams, match=f"projector_layers = {layers}; give 1, 2 or 3"):
            distilled(projector_layers=layers)


@pytest.mark.parametrize("size", [(1, 4), (2, 7), (9, 1)])
def test_prompts_are_as_deep_and_long_as_asked_for(size: tuple[int, int], tmp_path: Path) -> None:
    student, _ = distilled(image_depth=size[0], image_length=size[1])

    prompts = stored(student, tmp_path).image_prompts
    assert prompts is not None
    assert prompts.tokens.shape == (min(size[0], 3), size[1], 32)


@pytest.mark.parametrize(
    ("trained", "part", "kept"),
    [
        (Trained.PROMPTS_AND_PROJECTOR, {"image_prompts"}, {"image"}),
        (Trained.PROJECTOR_ONLY, set(), set()),
        (Trained.FULL_FINETUNE, {"tower"}, {"backbone"}),
    ],
)
def test_what_is_trained_moves_and_is_stored_and_the_given_towers_stay(
    trained: Trained, part: set[str], kept: set[str], tmp_path: Path
) -> None:
    given = {key: value.clone() for key, value in small().weights().items()}
    before = {name: p.detach().clone() for name, p in fresh(trained=trained).named_parameters()}

    student, _ = distilled(trained=trained, warmup_lr=0.001)

    after = dict(student.named_parameters())
    assert {name.split(".")[0] for name in after} == {"projector"} | part
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    assert same(small().weights(), given)
    stored(student, tmp_path)
    tensors, _ = read_tensors(tmp_path / "student.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"projector"} | kept


def test_a_whole_tower_is_trained_without_any_part_left_out_or_a_plain_one_is_projected() -> None:
    whole, plain = fresh(trained=Trained.FULL_FINETUNE), fresh(trained=Trained.PROJECTOR_ONLY)

    every = {f"tower.{name}" for name, _ in small().visual.named_parameters()}
    assert every < {name for name, _ in whole.named_parameters()}
    zero_shot = plain.projector(small().visual(images(3)))
    torch.testing.assert_close(plain(images(3)), zero_shot / zero_shot.norm(dim=1, keepdim=True))


def test_a_student_is_compared_with_the_teachers_text_features_or_its_own() -> None:
    shared, own = vectors(), class_vectors.build(Teacher(small()), NAMES)
    taught, _ = distilled(text_features=TextFeatures.TEACHER)
    student, history = distilled(text_features=TextFeatures.STUDENT)

    assert taught(images(2)).shape == (2, 16)
    assert student(images(2)).shape == (2, 8)
    assert for_student(taught, shared).vectors is shared.vectors
    assert for_student(student, shared).names == shared.names
    assert torch.equal(for_student(student, shared).vectors, own.vectors)
    features, target = by_hand(width=8)
    expected = 1000 * divergence(features, own.vectors, target)
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert history[0]["agreement"] == agreement(features, own.vectors, target)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Prepare a data set, its teacher and class vectors: the first arguments of the stage."""
    folder = tmp_path_factory.mktemp("distillation")
    files = [tiny.weights(folder, seed=seed) for seed in (0, 1)]
    teacher().save(folder / "teacher.safetensors")
    vectors().save(folder / "class_vectors.safetensors")
    models = {"model": "tiny", "teacher_model": "tiny"}
    weights = {"weights": files[1], "teacher_weights": files[0]}
    prepared = tiny.prepared(folder / "prepare" / "flowers")
    return {"prepared": prepared, "teacher": folder, "vectors": folder, **models, **weights}


def only(stages: dict[str, Any], folder: Path, **lists: object) -> dict[str, Any]:
    """Copy the prepared data set, with these lists of labelled pictures and no others."""
    split = json.loads((stages["prepared"] / "split.json").read_text())
    unlabelled = read_unlabelled(stages["prepared"])
    write_prepared(folder, {**split, **dict.fromkeys(LISTS, []), **lists}, unlabelled)
    return {**stages, "prepared": folder}


@pytest.mark.parametrize("text", list(TextFeatures))
@pytest.mark.parametrize("selection", list(Selection))
def test_evaluation_uses_the_students_text_features_and_notes_a_selection_on_test_images(
    text: TextFeatures, selection: Selection, stages: dict[str, Any], tmp_path: Path
) -> None:
    small, out = tiny.loaded("tiny", stages["weights"]), tmp_path / "evaluate"
    student = Student.untrained(small, feature_width=16, text_features=text)
    student.selection = selection
    student.eval().save(tmp_path / "student.safetensors")
    own = class_vectors.build(Teacher(small), NAMES)
    shared = replace(own, vectors=-own.vectors)  # so that they agree on no picture
    shared.save(tmp_path / "class_vectors.safetensors")
    folders = {"vectors": tmp_path, "student": tmp_path, "out": out}

    trainings.run_evaluate(**{**stages, **folders}, split="test", batch_size=20)

    metrics, rows = (read_json(out / f"{name}.json") for name in ("metrics", "predictions"))
    assert ("selection" in metrics) is (selection is ON_TEST)
    assert metrics.get("selection", ON_TEST) == "best_on_test_as_published"
    predictor = load_student(tmp_path, weights=stages["weights"])
    used = shared if text is TextFeatures.TEACHER else own
    with torch.no_grad():
        logits = student.logit_scale * student(images(4)) @ used.vectors.T
    network = predictor.student.network
    torch.testing.assert_close(network.compare(network.features(images(4))), logits.softmax(dim=1))
    folder = stages["prepared"].parent / "pictures"
    ranked = predictor.classify_many([folder / row["path"] for row in rows], top=1)
    assert [NAMES[row["student"][1]] for row in rows] == [ranking[0][0] for ranking in ranked]


@pytest.mark.parametrize(
    ("scores", "best"), [((10, 30, 30, 20), 2), ((40, 10, 20, 40), 1), ((1, 3, 2, 4), 4)]
)
def test_the_epoch_with_the_highest_score_is_kept_also_after_an_interruption(
    scores: tuple[float, ...], best: int, tmp_path: Path
) -> None:
    coming, seen = iter(scores * 2), []

    def scorer(student: Student, given: ClassVectors) -> float:
        assert not student.training
        assert torch.equal(given.vectors, vectors().vectors)
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        return next(coming)

    given = {"epochs": 4, "lr": 1e-3, "scorer": scorer, "selection": Selection.BEST_ON_VAL}
    student, history = distilled(**given)
    assert [epoch["score"] for epoch in history] == list(scores)
    with pytest.raises(KeyboardInterrupt):
        distilled(**given, on_epoch=stop, checkpoints=tiny.checkpoints(tmp_path))
    resumed, again = distilled(**given, checkpoints=tiny.checkpoints(tmp_path))

    assert student.selection is Selection.BEST_ON_VAL
    assert again == history
    for state in (student.state_dict(), resumed.state_dict()):
        assert [n for n, kept in enumerate(seen[:4], start=1) if same(state, kept)] == [best]


@pytest.mark.parametrize(
    ("selection", "name", "what"),
    [(Selection.BEST_ON_VAL, "few_shot_val", "validation"), (ON_TEST, "test", "test")],
)
def test_the_score_is_the_accuracy_among_base_classes_on_one_list_only(
    selection: Selection, name: str, what: str, stages: dict[str, Any], tmp_path: Path
) -> None:
    student, paths = fresh().eval(), [f"{label}_0.png" for label in range(3)]
    store, transform = (
        ImageStore(stages["prepared"].parent / "pictures"),
        eval_transform(PREPROCESS),
    )
    with torch.no_grad():
        features = student(torch.stack([transform(store.open(path)) for path in paths]))
    # Among all classes the novel ones would be the nearest to the first two pictures.
    classes = ClassVectors(NAMES, torch.cat([features, 1.1 * features[:2]]), 1.0, "made up")

    def score(*labels: int) -> float:
        rows = [*zip(paths, labels, strict=True), ("4_0.png", 4)]
        prepared = only(stages, tmp_path / str(labels), **{name: rows})["prepared"]
        scorer = make_scorer(prepared, selection, PREPROCESS, trainings.COMPUTE)
        assert scorer is not None
        return scorer(student, classes)

    assert [score(0, 1, 2), score(1, 0, 2)] == [100, pytest.approx(100 / 3)]
    assert make_scorer(tmp_path / "not read", Selection.LAST, PREPROCESS, trainings.COMPUTE) is None
    with pytest.raises(BadData, match=f"no labelled {what} images.*student.selection: last"):
        trainings.run_student(
            **only(stages, tmp_path / "a"), out=tmp_path / "b", selection=selection
        )


@pytest.mark.parametrize(
    "options", [{"selection": Selection.BEST_ON_VAL}, {"trained": Trained.FULL_FINETUNE}]
)
def test_an_interrupted_stage_ends_with_the_same_bytes(
    options: dict[str, Any], stages: dict[str, Any], tmp_path: Path
) -> None:
    # A picture under all three labels scores the same in every epoch, so that the first is kept.
    given = only(stages, tmp_path / "prepared", few_shot_val=[("0_0.png", n) for n in range(3)])

    def run(name: str, **rest: Any) -> tuple[bytes, ...]:
        numbers: dict[str, Any] = {"epochs": 3, "batch_size": 10, "lr": 1e-4, **options, **rest}
        trainings.run_student(**given, out=tmp_path / name, **numbers)
        return tuple(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))

    with pytest.raises(KeyboardInterrupt):
        run("stopped", checkpoints=tiny.checkpoints(tmp_path), on_epoch=stop)
    resumed = run("stopped", checkpoints=tiny.checkpoints(tmp_path))
    assert resumed == run("whole")
    for epoch in json.loads(resumed[0]):
        assert epoch.get("score", 100 / 3) == pytest.approx(100 / 3)
        assert ("score" in epoch) is ("selection" in options)


def test_so_many_unlabelled_images_of_each_class_are_listed_and_the_few_labels_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def items(name: str) -> tuple[Item, ...]:
        return tuple(Item(f"{name}/{n % 5}_{n}.png", n % 5, NAMES[n % 5]) for n in range(30))

    splits = Splits(items("train"), items("val"), items("test"))
    monkeypatch.setattr("pd_core.data.catalog.prepare.read_splits", lambda *_, **__: splits)

    def listed(count: int | None) -> tuple[tuple[str, ...], bytes]:
        out, config = tmp_path / str(count), prepare_config(unlabelled_per_class=count)
        prepare.run("dtd", out, config, data_root=tmp_path, seed=1)
        return tuple(read_unlabelled(out)), (out / "split.json").read_bytes()

    (whole, labels), (some, same_labels) = listed(None), listed(4)
    assert set(whole) == {item.path for item in splits.train}
    assert set(some) < set(whole)
    assert Counter(path.split("_")[0] for path in some) == {f"train/{n}": 4 for n in range(5)}
    assert same_labels == labels
    assert listed(100)[0] == whole
