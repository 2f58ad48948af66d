"""Harness for corrupt input: damage files of a small project, and run a verb on it.

    test_corrupt_parameters_are_refused = refused(CASES)

A case passes if the verb ends with status 2 and one line that names the file, and nothing in the
project or around it has changed: no output, no temporary file, no new time stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
from PIL import Image
from ruamel.yaml import YAML
from said import lines_but_counts

from pd_core.cli import models, verbs
from pd_core.data.loading.prepared import write_prepared
from pd_core.mlops import tracking
from pd_core.reporting.results import KEYS, MODELS

ROOT = Path(__file__).parents[2]
OWN = "mine"
ZIPPED = "embedded_greek"
CLASSES = ("ash tree", "beech", "cedar", "douglas fir")
STAGES = ("prepare", "teacher", "class-vectors", "student", "evaluate")

PREPARED = Path("data/prepare") / OWN
TEACHER = Path("data/teacher") / OWN / "teacher.safetensors"
VECTORS = Path("data/class_vectors") / OWN / "class_vectors.safetensors"
STUDENT = Path("data/student") / OWN / "student.safetensors"
RAW = Path("data/raw") / OWN


Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """Damage of a project, and the expected refusal.

    Attributes:
        name: Name of the test.
        damage: Function that damages a project folder.
        verb: Arguments of `promptkd`.
        names: Part of the error line.
    """

    name: str
    damage: Damage
    verb: tuple[str, ...]
    names: str = ""


@dataclass(frozen=True)
class Done:
    """Exit status of a verb, and its stderr."""

    status: object
    err: str


Content = dict[str, tuple[object, ...]]


def promptkd(project: Path, *arguments: str) -> Done:
    """Run a verb in this process, in a project's folder."""
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as change:
        change.chdir(project)
        change.setattr(sys, "argv", ["promptkd", *arguments])
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            verbs.main()
    return Done(end.value.code, err.getvalue())


def refused(cases: Iterable[Case]) -> Callable[..., None]:
    """Return a test that each case is refused."""

    @pytest.mark.timeout(30)
    @pytest.mark.parametrize("case", list(cases), ids=lambda case: case.name)
    def test(case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        with in_process():
            check_refused(case, copied(tmp_path_factory.getbasetemp(), tmp_path))

    return test


def check_refused(case: Case, project: Path) -> None:
    """Damage the project, and check that the verb refuses it and changes nothing."""
    case.damage(project)
    before = contents(project.parent)
    done = promptkd(project, *case.verb)
    check_line(done, case.names)
    assert contents(project.parent) == before


def check_line(done: Done, names: str) -> None:
    """Check that a verb was refused in one line with a name."""
    lines = lines_but_counts(done.err)
    assert (done.status, len(lines)) == (2, 1), done.err
    assert lines[0].startswith("error: ")
    assert names in lines[0]


def contents(folder: Path) -> Content:
    """Return kind, time and content of each file below a folder.

    Checkpoints and cached features are left out: a training may run until it reads what is damaged.
    """
    files = {path.relative_to(folder).as_posix(): _content(path) for path in folder.rglob("*")}
    ignored = re.compile(r"data/(checkpoints/|features)")
    return {path: content for path, content in files.items() if not ignored.search(path)}


def _content(path: Path) -> tuple[object, ...]:
    if path.is_symlink():
        return "link", str(path.readlink())
    if path.is_dir():
        return ("folder",)
    info = path.stat()
    return "file", info.st_size, info.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


Change = Callable[[bytes], bytes]


def shortened(share: float) -> Change:
    """Keep the first part of some bytes."""
    return lambda data: data[: int(share * len(data))]


def turned(place: float, bit: int = 0) -> Change:
    """Flip a bit; the place is a share of the length."""

    def change(data: bytes) -> bytes:
        content = bytearray(data)
        content[int(place * len(data))] ^= 1 << bit
        return bytes(content)

    return change


def replaced(other: bytes) -> Change:
    """Replace all bytes."""
    return lambda _: other


def changed(path: Path, change: Change) -> Damage:
    """Change the bytes of a file."""

    def damage(project: Path) -> None:
        data = (project / path).read_bytes()
        (project / path).write_bytes(change(data))

    return damage


def cut(path: Path, share: float) -> Damage:
    """Keep the first part of a file."""
    return changed(path, shortened(share))


def flip(path: Path, place: float, bit: int = 0) -> Damage:
    """Flip a bit of a file; the place is a share of its length."""
    return changed(path, turned(place, bit))


def put(path: Path, data: bytes) -> Damage:
    """Write other bytes to a file."""
    return lambda project: (project / path).write_bytes(data)


def folder_for(path: Path) -> Damage:
    """Put a folder in place of a file."""

    def damage(project: Path) -> None:
        (project / path).unlink()
        (project / path).mkdir()

    return damage


def linked(path: Path, target: str) -> Damage:
    """Put a link in place of a file."""

    def damage(project: Path) -> None:
        (project / path).unlink()
        (project / path).symlink_to(target)

    return damage


def unreadable(path: Path) -> Damage:
    """Put a file there whose reading fails, as on a broken disk, even for the superuser."""
    return linked(path, "/proc/self/mem")


def damages(
    path: Path, *, cuts: Sequence[float] = (), bits: Sequence[tuple[float, int]] = ()
) -> dict[str, Damage]:
    """Return the damages that every file may have, by name."""
    return {
        **{f"cut at {share}": cut(path, share) for share in cuts},
        **{f"a bit at {place}": flip(path, place, bit) for place, bit in bits},
        **{kind: put(path, data) for kind, data in WRONG.items()},
        "a folder": folder_for(path),
        "on a broken disk": unreadable(path),
    }


WRONG = {
    "empty": b"",
    "text": b"this is no such file\n",
    "page": b"<!doctype html><html><body>404</body></html>",
    "zeros": bytes(1000),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x02cposix\nsystem\nX\x10\x00\x00\x00touch ../touched\x85R.",
}
"""Files of other kinds."""


@cache
def pristine(base: Path) -> Path:
    """Return a project whose stages have run, once per session; it must not be changed."""
    project = base / "pristine" / "project"
    project.mkdir(parents=True)
    (base / "pristine" / "beside.txt").write_text("what lies beside the project")
    _write_pictures(project / RAW)
    _write_zipped(project / "data" / "prepare" / ZIPPED)
    _write_params(project, base)
    (project / "reports").mkdir()
    with in_process():
        for verb in (("data", "fingerprint", "--full"), *((stage,) for stage in STAGES)):
            done = promptkd(project, *verb, OWN)
            assert done.status == 0, done.err
    for who in (OWN, ZIPPED):
        metrics = project / "data" / "evaluate" / who / "metrics.json"
        metrics.parent.mkdir(exist_ok=True)
        scores = dict(zip((*KEYS, "all"), (60.0, 30.0, 40.0, 25.0), strict=True))
        metrics.write_text(json.dumps(dict.fromkeys(MODELS, scores), indent=2))
    return project


def copied(base: Path, place: Path) -> Path:
    """Copy the project and what is beside it."""
    shutil.copytree(pristine(base).parent, place / "around", symlinks=True)
    return place / "around" / "project"


@contextlib.contextmanager
def in_process() -> Any:
    """Run verbs in this process: no tracking, weights read once, torch restored."""
    stages = (
        "training.teacher.stage",
        "training.teacher.class_vectors",
        "training.student.stage",
        "evaluation.evaluate",
    )
    with tiny.quick_stages(*stages), pytest.MonkeyPatch.context() as change:
        for module in (verbs, models):
            change.setattr(module, "compute_with", lambda _: None)  # it sets the environment
        change.setattr(verbs, "register", lambda *_: None)
        change.setattr(tracking, "open_store", lambda *_: None)
        with patch.dict("os.environ"):
            yield


def picture(seed: int) -> Image.Image:
    """Draw a picture of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((24, 24))


def _write_pictures(folder: Path) -> None:
    """Write labelled pictures with a list, test pictures in class folders, and unlabelled ones."""
    rows = ["path,label"]
    for label, name in enumerate(CLASSES):
        for number in range(3):
            seed = 10 * label + number
            for part in ("labelled", f"test/{name}", "unlabelled"):
                suffix = "jpg" if part == "unlabelled" else "png"
                path = folder / part / f"{label}-{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(seed + 100 * len(part)).save(path)
            rows.append(f"labelled/{label}-{number}.png,{name}")
    (folder / "labelled.csv").write_text("\n".join(rows) + "\n")


def _write_zipped(folder: Path) -> None:
    """Write a prepared data set with its images in a zip file, like embedded ones."""
    import zipfile

    folder.mkdir(parents=True)
    rows = [(f"{label}-{number}.png", label) for label in range(4) for number in range(3)]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for seed, (path, _) in enumerate(rows):
            file = io.BytesIO()
            picture(seed).save(file, "PNG")
            archive.writestr(path, file.getvalue())
    split = {
        "dataset": ZIPPED, "title": "Greek", "classes": CLASSES, "base_classes": 2,
        "protocol": "base_to_novel", "images": "images.zip", "few_shot_val": [], "val": [],
        "few_shot": [row for row in rows if row[1] < 2], "test": rows,
    }  # fmt: skip
    write_prepared(folder, split, [path for path, _ in rows])


def _write_params(project: Path, base: Path) -> None:
    """Write the shipped parameters with the tiny CLIP and small numbers."""
    params: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    clip = {"model": "tiny", "batch_size": 4, "image_depth": 2, "epochs": 2}
    (base / "clips").mkdir()
    large, small = (str(tiny.weights(base / "clips", seed=seed)) for seed in (0, 1))
    params["teacher"].update(clip, weights=large, text_depth=2, templates=2, gpa_mean=2)
    params["student"].update(clip, weights=small, view_epochs=None)
    params["prepare"].update(shots=3, val_shots=1)
    own = {"labelled": f"{OWN}/labelled.csv", "unlabelled": f"{OWN}/unlabelled"}
    row = {"own": {**own, "test": f"{OWN}/test"}, "protocol": "base_to_novel"}
    params["datasets"] = {OWN: {"prepare": row}, ZIPPED: {}}
    write_params(project, params)


def write_params(project: Path, params: Mapping[str, Any]) -> None:
    """Write parameters as YAML."""
    with (project / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(dict(params), file)
