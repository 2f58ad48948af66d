"""Models of the published code come in by a verb, or as the stage `teacher` instead of training."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ruamel.yaml import YAML
from torch import Tensor

from pd_core.cli import models, verbs
from pd_core.core.artifacts import file_hash
from pd_core.core.options import TeacherMethod
from pd_core.mlops import tracking
from pd_core.models.clip import ClipTowers, load_clip
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher
from pd_core.training.teacher import stage as teacher_stage

ROOT = Path(__file__).parents[2]
NAME = "embedded_greek"
DEPTH, LENGTH, WIDTH, JOINT, FEATURES = 2, 3, 32, 16, 24
INPUT = {"text": "prompt_learner.ctx", "image": "image_encoder.VPT"}

State = dict[str, Tensor]


@dataclass(frozen=True)
class Done:
    """Exit status and output of a command."""

    status: object
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """Check the form of a refusal, and return its line."""
        lines = self.err.splitlines()
        assert (self.status, len(lines), self.out) == (2, 1, "")
        assert lines[0].startswith("error: ")
        return lines[0]


Verb = Callable[..., Done]


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    with tiny.torch_restored():
        yield


@pytest.fixture
def promptkd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Verb:
    """Run verbs in a folder whose params.yaml names the tiny CLIP."""
    monkeypatch.chdir(tmp_path)
    for module in (verbs, models):
        monkeypatch.setattr(module, "compute_with", lambda _: None)  # it sets the environment
    monkeypatch.setattr(tracking, "open_store", lambda *_: None)
    clip = {"model": "tiny", "weights": str(tiny.weights(tmp_path)), "image_length": LENGTH}
    set_params(
        teacher={**clip, "image_depth": DEPTH, "text_depth": DEPTH, "text_length": LENGTH},
        student={**clip, "image_depth": DEPTH},
    )

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["promptkd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            verbs.main()
        return Done(end.value.code, *capsys.readouterr())

    return run


def set_params(**blocks: Mapping[str, Any]) -> None:
    """Change keys of the params.yaml here, which is the shipped one at first."""
    path = Path("params.yaml")
    source = path if path.exists() else ROOT / "params.yaml"
    params: dict[str, Any] = YAML(typ="safe").load(source)
    for block, values in blocks.items():
        params[block].update(values)
    path.write_text(json.dumps(params))


def towers() -> ClipTowers:
    return load_clip("tiny", "tiny-0.safetensors")


def rows(branch: str, *, depth: int = DEPTH, length: int = LENGTH, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(len(branch))
    return torch.randn(depth, length, width, generator=generator)


def prompts(branch: str, **sizes: int) -> State:
    deeper = f"{branch}_encoder.transformer.resblocks.{{}}.VPT_shallow"
    return {
        deeper.format(block) if block else INPUT[branch]: row.clone()
        for block, row in enumerate(rows(branch, **sizes))
    }


def backbone() -> State:
    """Return the tiny CLIP's own weights by the published code's keys."""
    encoders = {"visual.": "image_encoder.", "text.": "text_encoder."}
    renamed = {"logit_scale": tiny.towers().weights()["logit_scale"]}
    for key, value in tiny.towers().weights().items():
        for ours, theirs in encoders.items():
            if key.startswith(ours) and "token_embedding" not in key:
                renamed[theirs + key.removeprefix(ours)] = value.clone()
    return renamed


def teacher_state(**more: Tensor) -> State:
    buffers = {"prompt_learner.token_prefix": torch.ones(5, 1, WIDTH)}
    return {**prompts("text"), **prompts("image"), **buffers, **backbone(), **more}


def projector(*, width: int = JOINT) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(width, FEATURES, 1),
            torch.nn.BatchNorm2d(FEATURES),
            torch.nn.ReLU(),
            torch.nn.Conv2d(FEATURES, FEATURES, 1),
        )
    return {f"VPT_image_trans.conv1.{key}": value for key, value in layers.state_dict().items()}


def student_state(**sizes: int) -> State:
    return {**prompts("image"), **projector(**sizes), **backbone()}


def checkpoint(state: Mapping[str, Any], path: str = "model.pth.tar-20") -> Path:
    """Write a file as the published code does."""
    groups = [{"lr": 0.0025, "momentum": 0.9, "params": [0]}]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": groups}
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 1, "optimizer": optimizer}, file)
    return file


def teacher_in(folder: str) -> Teacher:
    return Teacher.load(Path(folder) / "teacher.safetensors", towers())


def assert_prompts(tuned: Any, branch: str) -> None:
    assert torch.equal(tuned.tokens, rows(branch))


def printed_original(done: Done) -> dict[str, str]:
    """Return the block that a command prints for params.yaml."""
    match = re.search(r"original: \{.*\}", done.out)
    assert match is not None, done.out
    block: dict[str, str] = YAML(typ="safe").load(match[0])["original"]
    return block


def test_an_imported_teacher_is_written_where_the_stage_would_write_it(promptkd: Verb) -> None:
    done = promptkd("import-teacher", checkpoint(teacher_state()))

    assert (done.status, done.err) == (0, "")
    assert "written to data/teacher/model.pth.tar-20\n" in done.out
    teacher = teacher_in("data/teacher/model.pth.tar-20")
    assert_prompts(teacher.text_prompts, "text")
    assert_prompts(teacher.image_prompts, "image")
    assert teacher.method is TeacherMethod.PROMPTSRC
    assert teacher.towers.changes == {}


def test_an_imported_student_is_written_where_the_stage_would_write_it(promptkd: Verb) -> None:
    done = promptkd("import-student", checkpoint(student_state(), "model-best.pth.tar"))

    assert (done.status, done.err) == (0, "")
    assert "written to data/student/model-best.pth.tar\n" in done.out
    path = Path("data/student/model-best.pth.tar/student.safetensors")
    student = Student.load(path, towers())
    assert_prompts(student.image_prompts, "image")
    for key, value in projector().items():
        kept = student.projector.state_dict()[key.removeprefix("VPT_image_trans.conv1.")]
        assert torch.equal(kept, value.reshape(kept.shape))
    assert student(tiny.images(2)).shape == (2, FEATURES)


def test_the_overrides_of_a_named_data_set_count(promptkd: Verb) -> None:
    deep = prompts("image", depth=3)
    teacher = checkpoint({**prompts("text", depth=3), **deep})
    student = checkpoint({**projector(), **deep}, "model-best.pth.tar")
    row = {"teacher": {"text_depth": 3, "image_depth": 3}, "student": {"image_depth": 3}}
    set_params(datasets={NAME: row})

    for verb, file in (("import-teacher", teacher), ("import-student", student)):
        assert "_depth = 2" in promptkd(verb, file).refusal
        assert promptkd(verb, file, "--name", NAME).status == 0


def test_the_output_directory_may_be_given_and_paths_are_printed_unchanged(promptkd: Verb) -> None:
    file = checkpoint(teacher_state(), "runs [old]/model.pth.tar-20")

    done = promptkd("import-teacher", file, "--out", "published [old]/dtd")

    assert "written to published [old]/dtd\n" in done.out
    assert str(file) in done.out
    assert_prompts(teacher_in("published [old]/dtd").text_prompts, "text")
    assert not Path("data").exists()


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_backbone_that_differs_is_used_and_said(promptkd: Verb, kind: str) -> None:
    state = teacher_state() if kind == "teacher" else student_state()
    state["image_encoder.ln_post.bias"] = torch.full((WIDTH,), 0.25)
    file = checkpoint(state)

    done = promptkd(f"import-{kind}", file)

    notes = f"1 of {len(backbone())} frozen weights in '{file}' differ from those of model 'tiny'"
    assert notes in done.out
    path = Path("data") / kind / file.name / f"{kind}.safetensors"
    loaded = (Teacher if kind == "teacher" else Student).load(path, towers())
    assert torch.equal(
        loaded.towers.changes["visual.ln_post.bias"], state["image_encoder.ln_post.bias"]
    )


def test_a_file_without_a_backbone_says_whose_is_used(promptkd: Verb) -> None:
    file = checkpoint({**prompts("image"), **projector()})

    done = promptkd("import-student", file)

    assert f"no frozen weights in '{file}'; those of model 'tiny' are used\n" in done.out


def test_the_stage_takes_what_the_verb_prints_instead_of_training(
    promptkd: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.prepared(Path.cwd() / "data" / "prepare" / NAME)
    changed = torch.full((WIDTH,), 0.25)
    file = checkpoint(teacher_state(**{"image_encoder.ln_post.bias": changed}))
    imported = promptkd("import-teacher", file)
    original = printed_original(imported)
    assert original == {"path": str(file), "sha256": file_hash(file)}
    set_params(teacher={"original": original})
    monkeypatch.setattr(teacher_stage, "tune", None)  # whoever calls it fails

    done = promptkd("teacher", NAME)

    assert done.status == 0
    assert "differ from those of model 'tiny'" in " ".join(done.err.split())
    written = Path("data/teacher") / NAME
    assert json.loads((written / "history.json").read_text()) == []
    by_verb = Path("data/teacher") / file.name / "teacher.safetensors"
    assert (written / "teacher.safetensors").read_bytes() == by_verb.read_bytes()


def test_the_stage_refuses_an_original_that_is_missing_or_another(promptkd: Verb) -> None:
    tiny.prepared(Path.cwd() / "data" / "prepare" / NAME)
    file = checkpoint(teacher_state())
    wrong = "0" * 64
    set_params(teacher={"original": {"path": str(file), "sha256": wrong}})

    line = promptkd("teacher", NAME).refusal

    assert f"'{file}' has the hash {file_hash(file)}, not {wrong}" in line
    set_params(teacher={"original": {"path": "nothing.tar", "sha256": wrong}})
    assert "'nothing.tar'" in promptkd("teacher", NAME).refusal
    assert not Path("data/teacher").exists()


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        (
            "teacher",
            {**prompts("text", depth=3), **prompts("image")},
            "text prompts of depth 3 .* text_depth = 2; set teacher.text_depth: 3",
        ),
        (
            "teacher",
            {**prompts("text"), **prompts("image", length=5)},
            "image prompts of length 5 .* image_length = 3; set teacher.image_length: 5",
        ),
        (
            "teacher",
            {**prompts("text", width=48), **prompts("image")},
            "width 48 .* model 'tiny' has 3 layers of width 32; set teacher.model",
        ),
        ("teacher", student_state(), "'VPT_image_trans.conv1.* is no part of .* teacher"),
        ("student", teacher_state(), "'prompt_learner.ctx' .* is no part of .* student"),
        ("student", student_state(width=20), "input width 20 .* have width 16; set student.model"),
        ("student", prompts("image"), "no projector of two layers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    promptkd: Verb, kind: str, state: State, message: str
) -> None:
    file = checkpoint(state)

    line = promptkd(f"import-{kind}", file).refusal

    assert re.search(message, line), line
    assert str(file) in line
    assert not Path("data").exists()


@pytest.mark.parametrize("verb", ["import-teacher", "import-student"])
def test_what_is_not_there_or_no_checkpoint_is_refused_in_one_line(
    promptkd: Verb, verb: str
) -> None:
    Path("text.tar").write_text("no checkpoint")
    file = checkpoint(teacher_state() if verb == "import-teacher" else student_state())
    Path("half.tar").write_bytes(file.read_bytes()[:2000])

    for name in ("nothing.tar", "text.tar", "half.tar", "."):
        assert f"'{name}'" in promptkd(verb, name).refusal
    line = promptkd(verb, file, "--name", "embedded_grek").refusal
    assert "'embedded_grek'; did you mean 'embedded_greek'" in line
    kind = verb.removeprefix("import-")
    set_params(**{kind: {"weights": "nothing.safetensors"}})
    assert "nothing.safetensors" in promptkd(verb, file).refusal
    assert not Path("data").exists()


def test_a_folder_that_cannot_be_written_is_named(promptkd: Verb) -> None:
    Path("data").write_text("a file where a folder has to be")

    line = promptkd("import-teacher", checkpoint(teacher_state())).refusal

    assert "cannot write 'data/teacher/model.pth.tar-20" in line
