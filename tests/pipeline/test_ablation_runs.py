"""Runs of ablations on tiny data: shared parts, outputs, interruptions, tables."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import Mock

import pytest
import tiny
import torch
import trainings
from ruamel.yaml import YAML

from pd_core.cli import experiments, main
from pd_core.core.artifacts import write_sums
from pd_core.core.errors import MissingFile
from pd_core.core.options import Computed
from pd_core.evaluation import evaluate
from pd_core.pipeline import ablations
from pd_core.pipeline.ablations import BASES, FOLDER, REPORT, RESULTS, load_ablations
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import DatasetRow
from pd_core.training.student import stage as student_stage

ROOT = Path(__file__).parents[2]
STAGES = tuple(DatasetRow.model_fields)
NAMES, SEEDS = ("embedded_greek", "embedded_arrows"), (1, 2)

# What the tests below run, on tiny data.
TINY: dict[str, Any] = {
    "profile": "../params.yaml",
    "datasets": NAMES,
    "seeds": SEEDS,
    "variants": {
        "promptkd": {},
        "fast": {"student": {"lr": 0.01}},
        "teacher_ivlp": {"teacher": {"method": "ivlp"}},
        "images_1": {"prepare": {"unlabelled_per_class": 1}},
        "both": {"prepare": {"unlabelled_per_class": 2}, "teacher": {"method": "coop"}},
        "tuned_student": {"baseline": True},
        "best_on_test": {"student": {"selection": "best_on_test_as_published", "epochs": 2}},
    },
    "tables": [
        {
            "title": "Baseline",
            "source": "none",
            "reference": "promptkd",
            "rows": [
                {"variant": "tuned_student", "label": "tuned", "who": "tuned_student"},
                {"variant": "promptkd", "label": "distilled"},
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the bases in a folder whose files name the tiny CLIP, and stay there."""
    folder = tmp_path_factory.mktemp("world")
    source = tiny.prepared(folder / "source" / "lists")
    threads = torch.get_num_threads()

    def draw(job: Job) -> None:
        shutil.copytree(source, job.prepared)
        shown = job.params.prepare.unlabelled_per_class
        if shown is not None:
            paths = [f"{label}_{image}.png" for label in range(5) for image in range(shown)]
            (job.prepared / "unlabelled.json").write_text(json.dumps(paths))
            write_sums(job.prepared)

    profile = YAML(typ="safe").load(ROOT / "params.yaml")
    clip = {"model": "tiny", "batch_size": 4, "image_depth": 2, "epochs": 1}
    profile["teacher"].update(clip, weights=str(tiny.weights(folder)), text_depth=2)
    profile["teacher"].update(templates=2, gpa_mean=2)
    profile["student"].update(clip, weights=str(tiny.weights(folder, seed=1)), view_epochs=None)
    profile["datasets"] = {name: {} for name in NAMES}
    (folder / "params.yaml").write_text(json.dumps(profile))
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "params.yaml").write_text(json.dumps(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(experiments, "compute_with", lambda _: None)  # it sets the environment
        patch.setattr(jobs, "prepare", draw)
        patch.setattr("pd_core.training.student.stage.check_agreement", tiny.agreed)
        for name in NAMES:
            assert promptkd("base", name) == 0
        yield folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)


def promptkd(*arguments: str) -> object:
    """Run a verb of the ablations; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["promptkd", "ablation", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code


@dataclass(frozen=True)
class Call:
    """A stage that was run, and how many pictures its list had."""

    stage: str
    job: Job
    pictures: int


@pytest.fixture
def calls(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[Call]:  # noqa: ARG001
    """Note every stage that is run."""
    noted: list[Call] = []

    def note(stage: str) -> Callable[..., Any]:
        run = getattr(jobs, stage)

        def noting(job: Job, *arguments: Any, **rest: Any) -> Any:
            result = run(job, *arguments, **rest)
            paths = json.loads((job.prepared / "unlabelled.json").read_text())
            noted.append(Call(stage, job, len(paths)))
            return result

        return noting

    for stage in (*STAGES, "tuned_student"):
        monkeypatch.setattr(jobs, stage, note(stage))
    return noted


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def results(name: str) -> dict[str, Any]:
    """Return what a variant wrote, by data set."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in (RESULTS / name).glob("*/metrics.json")
    }


def test_the_base_has_lists_teacher_and_vectors_of_every_seed(world: Path) -> None:
    for name in NAMES:
        written = contents(world / BASES / name)
        assert set(written) == {
            f"{place}/{name}-{seed}/{file}"
            for seed in SEEDS
            for place, file in (
                ("prepare", "SHA256SUMS"),
                ("prepare", "split.json"),
                ("prepare", "unlabelled.json"),
                ("teacher", "teacher.safetensors"),
                ("teacher", "history.json"),
                ("class_vectors", "class_vectors.safetensors"),
            )
        }
        teachers = {
            content for path, content in written.items() if path.endswith("teacher.safetensors")
        }
        assert len(teachers) == len(SEEDS)


@pytest.mark.parametrize(
    ("name", "stages", "who", "pictures"),
    [
        ("promptkd", ["student", "evaluate"], evaluate.MODELS, 20),
        ("fast", ["student", "evaluate"], ["student"], 20),
        ("best_on_test", ["student", "evaluate"], ["student", "selection"], 20),
        ("images_1", ["prepare", "student", "evaluate"], ["student"], 5),
        (
            "teacher_ivlp",
            ["teacher", "class_vectors", "student", "evaluate"],
            ["teacher", "student"],
            20,
        ),
        ("both", list(STAGES), ["teacher", "student"], 10),
        ("tuned_student", ["tuned_student"], ["tuned_student"], 20),
    ],
)
def test_a_variant_runs_what_it_changes_and_takes_the_rest_from_the_base(
    calls: list[Call], name: str, stages: list[str], who: Sequence[str], pictures: int
) -> None:
    before = contents(BASES)

    assert promptkd("variant", name) == 0

    runs = [(dataset, seed) for dataset in NAMES for seed in SEEDS]
    assert [(call.job.params.name, call.job.seed, call.stage) for call in calls] == [
        (dataset, seed, stage) for dataset, seed in runs for stage in stages
    ]
    assert {call.pictures for call in calls} == {pictures}
    for stage in set(TINY["variants"][name]) & set(STAGES):
        for key, value in TINY["variants"][name][stage].items():
            assert {getattr(getattr(call.job.params, stage), key) for call in calls} == {value}
    for job in (call.job for call in calls if call.stage == "student"):
        for stage, place in (("prepare", job.prepared), ("teacher", job.teacher)):
            mine = BASES / job.params.name / stage / f"{job.params.name}-{job.seed}"
            assert (place == mine) is (stage not in stages)
        assert job.vectors.parents[1] == job.teacher.parents[1]
    assert contents(BASES) == before
    written = results(name)
    assert set(written) == set(NAMES)
    for seeds in written.values():
        assert set(seeds) == {str(seed) for seed in SEEDS}
        for entry in seeds.values():
            assert set(entry) == set(who)
            for one in set(who) - {"selection"}:
                assert 0 <= entry[one]["hm"] <= 100


def test_student_and_evaluation_get_their_numbers_and_the_right_models(
    world: Path, tmp_path: Path
) -> None:
    params, profile = load_ablations(FOLDER / "params.yaml")
    mine = params.for_dataset(profile, NAMES[0], "fast")
    where: dict[str, Any] = {"device": "cpu", "data_root": Path("nowhere")}
    made = Job.at(world / BASES / NAMES[0], mine, seed=2, suffix="-2", **where)
    job = replace(made, student=tmp_path / "a" / "student", evaluation=tmp_path / "a" / "evaluate")
    jobs.student(job)
    jobs.evaluate(job)

    out = tmp_path / "b"
    files: dict[str, Any] = {"teacher_model": "tiny", "teacher_weights": profile.teacher.weights}
    trainings.run_student(
        made.prepared, made.teacher, made.vectors, out / "student", seed=2,
        **{**files, **dict(mine.student)},
    )  # fmt: skip
    trainings.run_evaluate(
        made.prepared, made.teacher, made.vectors, out / "student", out / "evaluate",
        model="tiny", weights=profile.student.weights, teacher_model="tiny",
        teacher_weights=profile.teacher.weights, split="test", batch_size=256,
    )  # fmt: skip
    assert contents(tmp_path / "a") == contents(out) != {}


def run_fast(bases: Path, out: Path, names: Sequence[str] = NAMES) -> None:
    params, profile = load_ablations(FOLDER / "params.yaml")
    ablations.run_variant(
        bases,
        out,
        [params.for_dataset(profile, name, "fast") for name in names],
        changed={"student"},
        seeds=SEEDS,
        device="cpu",
        data_root=Path("nowhere"),
    )


def test_variants_of_the_student_share_the_teachers_targets(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, profile = load_ablations(FOLDER / "params.yaml")
    mine = params.for_dataset(profile, NAMES[0], "fast")
    kept, loaded = tmp_path / "features", list[int]()

    def load_further(*_: Any, **__: Any) -> list[Any]:  # which is called with every load
        loaded.append(1)
        return []

    monkeypatch.setattr(student_stage, "load_further", load_further)

    def run(**changed: Any) -> None:
        student = mine.student.model_copy(update={"teacher_targets": Computed.CACHED, **changed})
        ablations.run_variant(
            world / BASES, tmp_path / "out", [mine.model_copy(update={"student": student})],
            changed={"student"}, seeds=SEEDS, device="cpu", data_root=Path("nowhere"),
            features=kept,
        )  # fmt: skip

    run()
    recorded = contents(kept)
    assert len(loaded) == len(SEEDS)
    for changed in ({"temperature": 2.0}, {"projector_layers": 1}, {"kd_weight": 10.0}):
        run(**changed)
    assert contents(kept) == recorded != {}
    assert len(loaded) == len(SEEDS)


def test_an_interruption_leaves_nothing_new_and_earlier_results_as_they_were(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, student = tmp_path / "results" / "fast", jobs.student

    def stop(job: Job, **rest: Any) -> None:
        if job.params.name == NAMES[1]:
            raise KeyboardInterrupt
        student(job, **rest)

    def interrupted() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "student", stop)
            with pytest.raises(KeyboardInterrupt):
                run_fast(world / BASES, out)

    interrupted()
    assert list(out.parent.iterdir()) == []
    run_fast(world / BASES, out)
    first = contents(out.parent)
    assert set(first) == {f"fast/{name}/metrics.json" for name in NAMES}
    interrupted()
    assert contents(out.parent) == first

    params, profile = load_ablations(FOLDER / "params.yaml")
    base, rest = tmp_path / "base", dict[str, Any](device="cpu", data_root=Path("nowhere"))
    monkeypatch.setattr(jobs, "class_vectors", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ablations.make_base(base / "a", params.for_dataset(profile, NAMES[0]), seeds=SEEDS, **rest)
    assert list(base.iterdir()) == []


def test_a_missing_base_is_answered_with_the_command_that_makes_it(
    world: Path, tmp_path: Path
) -> None:
    bases = tmp_path / "bases"
    shutil.copytree(world / BASES / NAMES[0], bases / NAMES[0])

    with pytest.raises(MissingFile, match=f"run `dvc repro base@{NAMES[1]}`"):
        run_fast(bases, tmp_path / "results" / "fast")

    assert list((tmp_path / "results").iterdir()) == []


def test_the_tables_are_made_of_what_the_variants_measured(
    calls: list[Call],  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("promptkd", "tuned_student"):
        assert results(name) or promptkd("variant", name) == 0
    assert promptkd("report") == 0
    capsys.readouterr()
    assert promptkd("show") == 0
    shown = capsys.readouterr().out
    assert "Baseline" in shown
    assert "distilled" in shown

    (table,) = json.loads((REPORT / "summary.json").read_text())["tables"]
    for row, (variant, who) in zip(
        table["rows"], [("tuned_student", "tuned_student"), ("promptkd", "student")], strict=True
    ):
        assert (row["variant"], row["who"]) == (variant, who)
        base = [entry[who]["base"] for one in results(variant).values() for entry in one.values()]
        assert len(base) == len(NAMES) * len(SEEDS)
        assert row["base"]["mean"] == round(fmean(base), 2)


@pytest.mark.parametrize(
    ("verb", "name", "message"),
    [
        ("variant", "fsat", "unknown variant 'fsat'; did you mean 'fast'?"),
        ("base", "embedded_grek", "'embedded_grek'; did you mean 'embedded_greek'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    world: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, message: str
) -> None:
    before = contents(world / FOLDER)

    assert promptkd(verb, name) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert contents(world / FOLDER) == before
