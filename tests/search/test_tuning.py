"""Searches with tiny models: what is looked at, shared targets, seeds, and resumption."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import searching
import tiny

from pd_core.cli import tune
from pd_core.core.artifacts import read_json, write_json, write_sums
from pd_core.core.errors import BadData, BadParams, Diverged, MissingFile
from pd_core.core.hooks import Hooks
from pd_core.core.options import TeacherMethod
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import Params
from pd_core.search import candidate, tuning
from pd_core.search.objective import Kind
from pd_core.search.study import Study, Trial
from pd_core.search.tuning import Candidate, Result, Search
from pd_core.training.student import targets

VALIDATION: list[list[Any]] = [
    [f"{label}_{number}.png", label] for label in range(5) for number in (2, 3)
]
TEST: list[list[Any]] = [
    [f"{label}_{number}.png", label] for label in range(5) for number in (0, 1)
]


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with tiny.quick_stages(*tiny.TRAININGS):
        yield


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Job]:
    """A data set with validation images, until its class vectors."""
    return searching.project(tmp_path_factory.mktemp("project"), val=VALIDATION, test=TEST)


def with_lists(folder: Path, prepared: tuple[Params, Job], **lists: Any) -> tuple[Params, Job]:
    """Copy a prepared data set with other lists."""
    params, job = prepared
    copy = folder / "other" / searching.NAME
    shutil.copytree(job.prepared, copy)
    write_json(copy / "split.json", {**read_json(copy / "split.json"), **lists})
    write_sums(copy)
    return params, replace(job, prepared=copy)


def searched(params: Params, job: Job, stage: str = "student", trials: int = 4) -> Search:
    search = tuning.open_search(params, job, stage)
    tuning.run_trials(search, trials)
    return search


def test_validation_images_decide_and_the_test_list_is_not_handed_over(
    prepared: tuple[Params, Job],
) -> None:
    objective = tuning.open_search(*prepared, "student").task.objective

    assert objective.name == "harmonic mean on 10 validation images"
    (part,) = objective.parts
    split = read_json(part.prepared / "split.json")
    assert split["test"] == []
    assert split["val"] == VALIDATION


@pytest.mark.parametrize("stage", tuning.STAGES)
def test_no_test_image_is_read(stage: str, prepared: tuple[Params, Job], tmp_path: Path) -> None:
    """Test images are deleted, and all labels of the test list are wrong."""
    params, job = prepared
    unlabelled = [f"{label}_{number}.png" for label in range(5) for number in (2, 3)]
    few = [[path, int(path[0])] for path in unlabelled if int(path[0]) < 3]
    pictures: Path = tmp_path / "pictures"
    shutil.copytree(job.prepared.parent / "pictures", pictures)
    params, job = with_lists(
        tmp_path, prepared, few_shot=few, images=str(pictures),
        test=[[path, 0] for path, _ in TEST],
    )  # fmt: skip
    write_json(job.prepared / "unlabelled.json", unlabelled)
    write_sums(job.prepared)
    for path, _ in TEST:
        (pictures / path).unlink()

    result = tuning.best_candidates(searched(params, job, stage, trials=2))

    assert len(result.trials) == 2


def test_without_validation_images_the_few_labels_are_cross_validated(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    params, job = with_lists(tmp_path, prepared, val=[])
    search = searched(params, job, trials=1)
    objective = search.task.objective

    assert objective.kind is Kind.CROSS_VALIDATION
    assert objective.name == (
        "accuracy of base classes by 2-fold cross-validation on the 12 few labels"
    )
    for part in objective.parts:
        split = read_json(part.prepared / "split.json")
        assert not {path for path, _ in split["few_shot"]} & {path for path, _ in split["val"]}
        assert split["test"] == []
    assert [*search.study.trials()[0].rungs] == [0, 1]


def test_without_labels_the_agreement_on_held_out_images_decides(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    few = [[f"{label}_0.png", label] for label in range(3)]
    params, job = with_lists(tmp_path, prepared, val=[], few_shot=few, test=[])
    objective = searched(params, job, trials=1).task.objective

    assert objective.name == (
        "agreement with the teacher on 2 held-out unlabelled images, no accuracy"
    )
    held_out = {path for path, _ in read_json(objective.parts[0].prepared / "split.json")["val"]}
    assert not held_out & {*read_json(objective.parts[0].prepared / "unlabelled.json")}


def test_a_teacher_without_anything_to_look_at_is_refused_in_one_line(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    few = [[f"{label}_0.png", label] for label in range(3)]
    params, job = with_lists(tmp_path, prepared, val=[], few_shot=few)

    with pytest.raises(BadData, match="has nothing to choose a teacher by: no validation images"):
        tuning.open_search(params, job, "teacher")


def test_the_agreement_is_not_measured_on_test_images(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    few = [[f"{label}_0.png", label] for label in range(3)]
    everything = [[f"{label}_{number}.png", label] for label in range(5) for number in range(4)]
    params, job = with_lists(tmp_path, prepared, val=[], few_shot=few, test=everything)

    with pytest.raises(BadData, match="has nothing to choose a student by"):
        tuning.open_search(params, job, "student")


@pytest.fixture(scope="module")
def result(prepared: tuple[Params, Job], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search of the student that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("result"))
        return tuning.best_candidates(searched(*prepared))


def test_the_first_trial_has_the_current_values_and_is_complete(
    result: Result, prepared: tuple[Params, Job]
) -> None:
    first = result.trials[0]

    assert first.values == {"lr": prepared[0].student.lr, "temperature": 1.0}
    assert first.value is not None
    assert len(first.curve) == searching.STUDENT["epochs"]
    assert 0 <= first.value <= 100


def test_a_trial_that_is_not_promising_ends_at_its_rung(
    prepared: tuple[Params, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched(*prepared, trials=1)
    monkeypatch.setattr(Study, "is_promising", lambda *given: given[2] < 1)
    tuning.run_trials(search, 2)

    (_, pruned) = search.study.trials()
    assert pruned.value is None
    assert len(pruned.curve) == searching.STUDENT["epochs"] / 2


def test_candidates_are_ranked_by_their_mean_over_new_seeds(
    result: Result, prepared: tuple[Params, Job]
) -> None:
    assert prepared[1].seed == 1
    assert result.search.seeds == (2, 3, 4)
    assert 1 in [each.trial.number for each in result.candidates]
    assert all(len(each.scores) == 3 for each in result.candidates)
    means = [each.mean for each in result.candidates]
    assert means == sorted(means, reverse=True)
    assert result.source == "tuned: 4 trials, validation"


def test_luck_with_one_seed_does_not_win(
    prepared: tuple[Params, Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lucky(_: Any, values: dict[str, Any], seed: int, *_rest: Any) -> float:
        is_current = values["temperature"] == 1.0
        return 60.0 if is_current else 90.0 if seed == 1 else 10.0

    monkeypatch.setattr(tuning, "score", lucky)
    result = tuning.best_candidates(searched(*prepared, trials=5))

    assert len(result.candidates) == 4  # the best three, which are lucky, and the current values
    assert result.best.trial.number == 1
    assert result.best.scores == (60.0, 60.0, 60.0)
    tune._show(result)
    shown = capsys.readouterr().out
    assert "trial 1, initial" in shown
    assert "no candidate is better than the initial values by more than a standard error" in shown


@pytest.mark.parametrize(
    ("others", "number"),
    [
        ([(62, 60, 59)], 1),  # by 0.33, the standard error is 0.88
        ([(62, 61, 60)], 2),  # by 1, the standard error is 0.58
        ([(61, 61, 61)], 2),
        ([(60, 60, 60)], 1),
        ([(59, 59, 59)], 1),
        ([(80, 50, 60), (61, 61, 61)], 3),  # the first has the higher mean, by luck with a seed
    ],
)
def test_initial_values_stay_unless_others_are_better_by_a_standard_error(
    others: list[tuple[float, ...]], number: int
) -> None:
    scores = [(60.0, 60.0, 60.0), *others]
    candidates = [
        Candidate(Trial(each, {}, 60.0, {}, 0.0, 0, 0), tuple(values))
        for each, values in enumerate(scores, start=1)
    ]
    ranked = sorted(candidates, key=lambda each: -each.mean)

    result = Result(cast("Search", None), (), tuple(ranked), 0.0)
    assert result.best.trial.number == number
    if number != 1:  # without the initial values, which have diverged, the best mean wins
        without = [each for each in ranked if each.trial.number != 1]
        assert replace(result, candidates=tuple(without)).best == without[0]


def test_trials_share_the_teachers_targets(
    prepared: tuple[Params, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, job = prepared
    loads: list[str] = []
    make = targets.cached_teachers

    def counted(load: Any, *rest: Any) -> Any:
        def loaded() -> Any:
            loads.append("the teacher")
            return load()

        return make(loaded, *rest)

    monkeypatch.setattr("pd_core.training.student.stage.cached_teachers", counted)
    searched(params, replace(job, features=Path("features").absolute()), trials=3)

    assert loads == ["the teacher"]


def test_a_search_that_is_done_trains_nothing_again(
    prepared: tuple[Params, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuning.best_candidates(searched(*prepared, trials=3))
    monkeypatch.setattr(tuning, "score", None)
    again = tuning.best_candidates(searched(*prepared, trials=3))

    assert again.candidates == first.candidates


def test_a_search_begins_anew_where_the_data_differ(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    name = tuning.open_search(*prepared, "student").study.name
    fewer = with_lists(tmp_path, prepared, val=VALIDATION[:6])

    assert tuning.open_search(*fewer, "student").study.name != name


def test_new_current_values_continue_a_search(prepared: tuple[Params, Job]) -> None:
    params, job = prepared
    name = tuning.open_search(params, job, "student").study.name
    changed = params.model_copy(update={"student": params.student.model_copy(update={"lr": 0.02})})
    other = replace(job, params=changed.for_dataset(searching.NAME))

    assert tuning.open_search(changed, other, "student").study.name == name


def test_a_diverged_trial_counts_as_the_worst_and_names_the_reason(
    prepared: tuple[Params, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any) -> float:
        raise Diverged("the loss is nan")

    search = searched(*prepared, trials=1)
    monkeypatch.setattr(tuning, "score", diverges)
    tuning.run_trials(search, 2)

    last: Trial = search.study.trials()[-1]
    assert (last.value, last.reason) == (None, "the loss is nan")


def test_an_interrupted_trial_is_trained_again(
    prepared: tuple[Params, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def interrupted(_: Any, values: Any, *_rest: Any) -> float:
        asked.append(values)
        raise KeyboardInterrupt

    search = searched(*prepared, trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuning.run_trials(search, 2)
    tuning.run_trials(search, 2)

    assert [trial.number for trial in search.study.trials()] == [1, 2]
    assert search.study.trials()[1].values == asked[0]


def test_no_trial_begins_after_the_given_time(prepared: tuple[Params, Job]) -> None:
    search = tuning.open_search(*prepared, "student")
    tuning.run_trials(search, 5, until=0.0)

    assert search.study.trials() == []


def test_a_teacher_without_training_is_refused(prepared: tuple[Params, Job]) -> None:
    params, job = prepared
    teacher = params.teacher.model_copy(update={"method": TeacherMethod.CLIP})
    untuned = replace(job, params=job.params.model_copy(update={"teacher": teacher}))

    with pytest.raises(BadParams, match="method clip is not trained; tune the student"):
        tuning.open_search(params, untuned, "teacher")


def test_an_earlier_stage_that_has_not_run_is_named(
    prepared: tuple[Params, Job], tmp_path: Path
) -> None:
    params, job = prepared
    missing = replace(job, vectors=tmp_path / "nothing" / searching.NAME)

    with pytest.raises(MissingFile, match="run `dvc repro class_vectors@flowers`"):
        searched(params, missing, trials=1)


def test_a_search_hides_itself_from_git(prepared: tuple[Params, Job]) -> None:
    tuning.open_search(*prepared, "student")

    assert (tuning.SEARCH / ".gitignore").read_text() == "*\n"


def test_the_teachers_prompts_are_measured_during_the_training(
    prepared: tuple[Params, Job],
) -> None:
    search = searched(*prepared, "teacher", trials=1)
    (trial,) = search.study.trials()

    assert [*trial.rungs] == [0, 1]
    assert trial.value is not None


def test_rungs_are_passed_in_order_once_each(prepared: tuple[Params, Job]) -> None:
    task = tuning.open_search(*prepared, "student").task
    passed: list[int] = []
    candidate.score(task, task.current(), 1, on_rung=lambda rung, _: passed.append(rung))

    assert passed == [0, 1]


def test_no_candidate_is_measured_before_its_warm_up_is_over(
    prepared: tuple[Params, Job],
) -> None:
    task = tuning.open_search(*prepared, "student").task
    student = task.job.params.student
    assert student.epochs == 6, "a sixth of it is the warm-up"
    assert student.warmup_epochs == 1
    epochs: list[int] = []
    measured: list[int] = []
    candidate.score(
        task, task.current(), 1, Hooks(on_epoch=lambda epoch, _: epochs.append(epoch)),
        lambda *_: measured.append(epochs[-1]),
    )  # fmt: skip

    assert measured == [2, 3]
