"""`promptkd new` makes a project of the user's own images; `promptkd data add` adds a data set."""

import re
import shutil
import subprocess
from difflib import ndiff
from pathlib import Path

import photos
import pytest
import tiny
from command import dvc, promptkd
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pd_core.data.acquire import sources
from pd_core.pipeline import project as project_files
from pd_core.pipeline.clips import Clip
from pd_core.pipeline.stages.params import load_params

ROOT = Path(__file__).parents[2]
EMBEDDED = ("--teacher", "embedded-teacher", "--student", "embedded-student")
FOLDERS = ("--labelled", "photos/labelled", "--unlabelled", "photos/unlabelled")
TEST = ("--test", "photos/test")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the user's photos."""
    for variable in ("PD_DATA_ROOT", "PD_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    photos.write(tmp_path / "photos")
    return tmp_path


@pytest.fixture
def project(place: Path) -> Path:
    done = promptkd(place, "new", "digits", *FOLDERS, *TEST, *EMBEDDED)
    assert done.returncode == 0, done.stderr
    return place / "digits"


def git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_project_is_committed_and_nothing_is_wrong_with_it(project: Path) -> None:
    assert git(project, "status", "--short") == ""
    files = git(project, "ls-files").split()
    assert {
        ".dvc/config", ".dvcignore", ".env.example", ".gitignore", "README.md", "constraints.txt",
        "dvc.yaml", "fingerprints/digits.json", "params.yaml", "prefect.yaml",
    } <= set(files)  # fmt: skip
    assert not any(file.startswith("data/") for file in files)
    outputs = ["data/code", "data/prepare/digits", "data/student/digits/student.safetensors"]
    assert git(project, "check-ignore", *outputs).split() == outputs  # before they are there
    done = promptkd(project, "doctor")
    assert "wrong " not in done.stdout
    assert done.returncode == 0
    assert promptkd(project, "data", "verify", "digits").returncode == 0
    stages = dvc(project, "stage", "list", "--name-only").stdout.split()
    assert stages[0] == "code"
    assert "evaluate@digits" in stages


def test_classes_and_counts_and_the_next_commands_are_printed(place: Path) -> None:
    done = promptkd(place, "new", "digits", *FOLDERS, *EMBEDDED)
    assert "digits: ok, 4 classes, 12 train, 0 validation and 0 test images" in done.stdout
    assert "digit one        3      0      0  labelled/digit one/" in done.stdout
    assert "32 unlabelled images" in done.stdout
    assert (place / "digits/data/contact_sheets/digits.jpg").is_file()
    assert done.stdout.endswith(
        "  cd digits\n  dvc repro\n  promptkd registry promote digits --accept-unknown\n"
        "  promptkd serve digits\n"
    )


def test_images_are_linked_and_few_labels_lower_the_shots(project: Path) -> None:
    link = project / "data" / "raw" / "digits" / "labelled"
    assert link.readlink() == (project.parent / "photos" / "labelled").resolve()
    prepare = load_params(project / "params.yaml").for_dataset("digits").prepare
    assert (prepare.shots, prepare.val_shots) == (3, 3)


def test_a_folder_within_another_is_read_through_its_link(place: Path) -> None:
    given = ("--labelled", "photos/labelled", "--unlabelled", "photos")
    assert promptkd(place, "new", "digits", *given, *EMBEDDED).returncode == 0
    own = load_params(place / "digits" / "params.yaml").for_dataset("digits").prepare.own
    assert own is not None
    assert own.given == ("digits/unlabelled/labelled", "digits/unlabelled")


def test_a_list_is_linked_with_its_folder(place: Path) -> None:
    rows = [f"{file.parent.name}/{file.name},{file.parent.name}"
            for file in (place / "photos" / "labelled").glob("*/*.png")]  # fmt: skip
    (place / "photos" / "labelled" / "all.csv").write_text("\n".join(["path,label", *rows]))
    given = ("--labelled", "photos/labelled/all.csv", "--unlabelled", "photos/unlabelled")
    assert promptkd(place, "new", "digits", *given, *EMBEDDED).returncode == 0
    assert promptkd(place / "digits", "data", "verify", "digits").returncode == 0


@pytest.mark.parametrize(
    ("clips", "template"),
    [(EMBEDDED, "params.yaml"), (("ViT-B-16", "ViT-B-32"), "paper/params.yaml")],
)
def test_every_number_is_that_of_the_repository_but_for_the_machine_and_the_models(
    clips: tuple[str, ...], template: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if clips != EMBEDDED:
        _serve_weights(monkeypatch)
        clips = ("--teacher", "ViT-B-16:openai", "--student", "ViT-B-32:openai")
    done = promptkd(place, "new", "digits", *FOLDERS, *clips)
    assert done.returncode == 0, done.stderr
    own, ours = (
        YAML(typ="safe").load(file) for file in (place / "digits/params.yaml", ROOT / template)
    )
    changed = {
        f"{block}.{key}"
        for block in ours.keys() - {"datasets", "tuned_student"}
        for key in ours[block]
        if own[block][key] != ours[block][key]
    }
    assert own.keys() == ours.keys()
    assert changed <= {
        "profile.name", "profile.root", "run.device", "run.threads", "run.workers",
        "teacher.model", "teacher.weights", "student.model", "student.weights",
    }  # fmt: skip
    lines = (place / "digits/params.yaml").read_text().splitlines()
    numbers = [line for line in lines if re.match(r"  \w+: ", line)]
    assert all("#" in line for line in numbers if not line.startswith("    "))


def _serve_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the weights of OpenAI's models into the place of their download."""

    def fetch(file: sources.RemoteFile, data_root: Path) -> None:
        (data_root / "weights").mkdir(parents=True, exist_ok=True)
        (data_root / "weights" / file.name).write_bytes(file.name.encode())

    monkeypatch.setattr("pd_core.cli.project._fetch", fetch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", *FOLDERS, *EMBEDDED), "'photos' exists already"),
        (("my-photos", *FOLDERS, *EMBEDDED), "'my-photos' names no data set; give letters"),
        (("dtd", *FOLDERS, *EMBEDDED), "'dtd' is a data set of the catalogue"),
        (("digits", "--labelled", "gone", *EMBEDDED), "images of --labelled not found: 'gone'"),
        (("digits", "--labelled", "few", *EMBEDDED), "few' has 1 classes: give images of two"),
        (("digits", *FOLDERS, "--teacher", "ViT-X"), "unknown model 'ViT-X'; did you mean"),
        (("digits", *FOLDERS, "--teacher", "ViT-B-16:none.pt"), "weights of 'ViT-B-16' not found"),
        (("digits", *FOLDERS, "--teacher", "ViT-B-16"), "'none given'; give ViT-B-16:FILE, or"),
        (("digits", *FOLDERS, *EMBEDDED[:2], "--student", "ViT-B-16:random.safetensors"),
         "random.safetensors' for 'ViT-B-16' does not fit the model"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_in_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, place: Path
) -> None:
    shutil.copytree(place / "photos/labelled/digit one", place / "few" / "digit one")
    save_file(tiny.model().state_dict(), place / "random.safetensors")
    before = sorted(path.name for path in place.iterdir())
    done = promptkd(place, "new", *arguments)
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(path.name for path in place.iterdir()) == before


def test_without_git_nothing_is_made(place: Path) -> None:
    done = promptkd(place, "new", "digits", *FOLDERS, *EMBEDDED, PATH=str(place))
    assert done.returncode == 2
    assert "git is not installed" in done.stderr
    assert not (place / "digits").exists()


def test_without_weights_there_are_three_remedies_and_no_project(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = sources.Address("http://127.0.0.1:9/none", sources.Origin.REPORTED)
    rows = {name: sources.RemoteFile(name, (closed,)) for name in sources.weight_names()}
    monkeypatch.setattr(sources, "_CLIP_ROWS", rows)
    monkeypatch.setattr("pd_core.data.acquire.download.time.sleep", lambda _: None)
    done = promptkd(place, "new", "digits", *FOLDERS, "--small")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    for remedy in ("MODEL:FILE", "set PD_MIRROR", "where there is a network"):
        assert remedy in line
    assert not (place / "digits").exists()


def test_a_clone_without_weights_is_refused_before_anything_is_computed(project: Path) -> None:
    shutil.rmtree(project / "data" / "raw" / "weights")
    done = promptkd(project, "prepare", "digits")
    assert done.returncode == 2
    assert "promptkd weights fetch` where" in done.stderr
    assert not (project / "data" / "prepare").exists()


def test_a_data_set_is_added_and_all_other_lines_stay(project: Path) -> None:
    photos.write(project.parent / "more", labelled=5)
    before = (project / "params.yaml").read_text()
    more = ("--labelled", "../more/labelled", "--unlabelled", "../more/unlabelled")
    done = promptkd(project, "data", "add", "more_digits", *more)
    assert done.returncode == 0, done.stderr
    assert "more_digits: ok, 4 classes, 20 train" in done.stdout
    after = (project / "params.yaml").read_text()
    changes = [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-?"]
    assert changes[0] == "+   more_digits:"
    assert all(line.startswith("+ ") for line in changes)
    assert promptkd(project, "data", "verify", "digits", "more_digits").returncode == 0
    assert (project / "fingerprints" / "more_digits.json").is_file()
    stages = dvc(project, "stage", "list", "--name-only").stdout
    assert "student@more_digits" in stages


@pytest.mark.parametrize(
    ("name", "message"),
    [("digits", "has a data set 'digits' already"), ("more", "more' has files already")],
)
def test_a_data_set_that_cannot_be_added_changes_nothing(
    name: str, message: str, project: Path
) -> None:
    (project / "data" / "raw" / "more").mkdir()
    (project / "data" / "raw" / "more" / "a.txt").write_text("mine")
    labelled = ("--labelled", "../photos/labelled")
    done = promptkd(project, "data", "add", name, *labelled)
    assert done.returncode == 2
    assert message in done.stderr
    assert git(project, "status", "--short") == ""
    assert [path.name for path in (project / "data" / "raw" / "more").iterdir()] == ["a.txt"]


def test_images_below_the_data_root_need_no_links(project: Path) -> None:
    photos.write(project / "data" / "raw" / "more")
    done = promptkd(project, "data", "add", "more", "--labelled", "data/raw/more/labelled")
    assert done.returncode == 0, done.stderr
    own = load_params(project / "params.yaml").for_dataset("more").prepare.own
    assert own is not None
    assert own.labelled == "more/labelled"


def test_deployments_of_a_project_are_those_of_its_own_folder(project: Path) -> None:
    deployments = YAML(typ="safe").load(project / "prefect.yaml")["deployments"]
    names = ["gpu", "all", "trials", "agents", "gate", "nightly", "hourly"]
    assert [each["name"] for each in deployments] == names
    assert {each["parameters"].get("profile_dir") for each in deployments} == {".", None}


def test_a_model_that_cannot_have_all_prompts_gets_what_it_can(tmp_path: Path) -> None:
    def stages(teacher: str, student: str) -> tuple[str, str]:
        clips = (Clip(model, "weights.safetensors", "", print) for model in (teacher, student))
        content = project_files._params("photos", *clips, small=False)
        content["datasets"]["dtd"] = {}
        (tmp_path / "params.yaml").write_text(project_files.text_of(content))
        params = load_params(tmp_path / "params.yaml")
        return params.teacher.method, params.student.trained

    assert stages("EVA02-L-14", "ViT-B-32") == ("promptsrc", "prompts_and_projector")
    assert stages("convnext_xxlarge", "MobileCLIP2-S2") == ("coop", "norm_and_projector")
    assert stages("xlm-roberta-large-ViT-H-14", "RN50-quickgelu") == ("clip", "norm_and_projector")
