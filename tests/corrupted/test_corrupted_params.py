"""Parameter files that break off, are no YAML, or say what cannot be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corruption import (
    OWN,
    WRONG,
    Case,
    check_refused,
    copied,
    cut,
    folder_for,
    in_process,
    put,
    unreadable,
    write_params,
)
from ruamel.yaml import YAML

pytestmark = pytest.mark.timeout(20)

PARAMS = Path("params.yaml")
VERB = ("prepare", OWN)


def appended(text: str) -> Callable[[Path], object]:
    """Add lines to the file."""

    def damage(project: Path) -> None:
        with (project / PARAMS).open("a") as file:
            file.write(text)

    return damage


def value(block: str, key: str, new: Any) -> Callable[[Path], object]:
    """Set a key."""

    def damage(project: Path) -> None:
        params = YAML(typ="safe").load(project / PARAMS)
        params[block][key] = new
        write_params(project, params)

    return damage


def raw(block: str, key: str, text: str) -> Callable[[Path], object]:
    """Set a key to a text of YAML's."""
    mark = "0123456789 in place of the text"

    def damage(project: Path) -> None:
        value(block, key, mark)(project)
        written = (project / PARAMS).read_text()
        (project / PARAMS).write_text(written.replace(mark, text))

    return damage


LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
TAGS = (
    "!!python/object/apply:os.system ['touch ../touched']",
    "!!python/object/new:os.system ['touch ../touched']",
    "!!python/name:os.system",
    "!!binary '@@@'",
    "!!timestamp 2024-99-99",
    "!!int abc",
    "!!float abc",
    "!!set {a, b}",
    "!something abc",
)
VALUES: dict[str, tuple[str, str, Any]] = {
    "rate nan": ("teacher", "lr", float("nan")),
    "rate infinite": ("teacher", "lr", float("inf")),
    "rate negative": ("student", "lr", -0.1),
    "rate text": ("student", "lr", "fast"),
    "rate list": ("student", "lr", [0.1]),
    "shots 0": ("prepare", "shots", 0),
    "shots half": ("prepare", "shots", 1.5),
    "shots yes": ("prepare", "shots", True),
    "shots null": ("prepare", "shots", None),
    "seed text": ("run", "seed", "one"),
    "seed endless": ("run", "seed", 10**40),
    "seed negative": ("run", "seed", -1),
    "threads 0": ("run", "threads", 0),
    "device magic": ("run", "device", "magic"),
    "momentum 2": ("teacher", "momentum", 2),
    "crop reversed": ("teacher", "crop_scale", [1.0, 0.5]),
    "crop of three": ("teacher", "crop_scale", [0.1, 0.5, 1.0]),
    "method unknown": ("teacher", "method", "magic"),
    "template without a place": ("teacher", "template", "a photo"),
    "key unknown": ("teacher", "learning_rate", 0.1),
    "block of text": ("datasets", OWN, "text"),
    "data set with a path for a name": ("datasets", "../../outside", {}),
    "pictures elsewhere": ("datasets", OWN, {"prepare": {"own": {"labelled": "../../outside"}}}),
    "pictures anywhere": ("datasets", OWN, {"prepare": {"own": {"labelled": "/etc"}}}),
}


def cases() -> Iterator[Case]:
    damages: dict[str, Callable[[Path], object]] = {
        **{f"cut at {share}": cut(PARAMS, share) for share in (0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)},
        **{kind: put(PARAMS, data) for kind, data in WRONG.items()},
        "a folder": folder_for(PARAMS),
        "on a broken disk": unreadable(PARAMS),
        "latin 1": put(PARAMS, "a: \u00e9\n".encode("latin-1")),
        "zero bytes": appended("a: \0\n"),
        "tabs": appended("\tteacher:\n\t\tlr: 1\n"),
        "keys twice": appended("teacher: {}\n"),
        "a list": put(PARAMS, b"- a\n- b\n"),
        "a number": put(PARAMS, b"3\n"),
        "two documents": appended("---\na: 1\n"),
        "an unclosed bracket": appended("a: [1, 2\n"),
        "an unknown alias": appended("a: *nothing\n"),
        "a list that holds itself": appended("a: &a [*a]\n"),
        "a block that holds itself": appended("a: &a {b: *a}\n"),
        "a billion laughs": appended(LAUGHS),
        "brackets without end": appended("a: " + "[\n " * 5000 + "]" * 5000 + "\n"),
        "a list for a key": appended("? [a, b]\n: 1\n"),
        "a number for a key": appended("3: 1\n"),
        "a date": appended("a: 2024-99-99\n"),
        "a number without end": appended("a: " + "9" * 5000 + "\n"),
        **{tag: appended(f"a: {tag}\n") for tag in TAGS},
        **{f"{tag} for a rate": raw("teacher", "lr", tag) for tag in TAGS[:4]},
        **{name: value(*given) for name, given in VALUES.items()},
    }
    names = {"pictures elsewhere": "../../outside", "pictures anywhere": "/etc"}
    for name, damage in damages.items():
        yield Case(f"params: {name}", damage, VERB, names.get(name, "params.yaml"))


CASES = list(cases())


@pytest.fixture(autouse=True, scope="module")
def _in_process() -> Iterator[None]:
    with in_process():
        yield


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corrupted_parameters_are_refused(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_refused(case, copied(tmp_path_factory.getbasetemp(), tmp_path))
