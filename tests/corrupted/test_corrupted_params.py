"""Parameter files that are cut off, are no YAML, or have invalid values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corruption import OWN, Case, Damage, damages, put, refused, write_params
from ruamel.yaml import YAML

PARAMS = Path("params.yaml")
VERB = ("prepare", OWN)


def appended(text: str) -> Damage:
    """Add lines to the file."""

    def damage(project: Path) -> None:
        with (project / PARAMS).open("a") as file:
            file.write(text)

    return damage


def value(block: str, key: str, new: Any) -> Damage:
    """Set a key."""

    def damage(project: Path) -> None:
        params = YAML(typ="safe").load(project / PARAMS)
        params[block][key] = new
        write_params(project, params)

    return damage


def raw(block: str, key: str, text: str) -> Damage:
    """Set a key to a raw text of YAML."""
    mark = "0123456789 instead of the text"

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
    "rate negative": ("student", "lr", -0.1),
    "shots 0": ("prepare", "shots", 0),
    "shots yes": ("prepare", "shots", True),
    "seed endless": ("run", "seed", 10**40),
    "crop reversed": ("teacher", "crop_scale", [1.0, 0.5]),
    "key unknown": ("teacher", "learning_rate", 0.1),
    "block of text": ("datasets", OWN, "text"),
    "data set with a path for a name": ("datasets", "../../outside", {}),
    "pictures elsewhere": ("datasets", OWN, {"prepare": {"own": {"labelled": "../../outside"}}}),
    "pictures anywhere": ("datasets", OWN, {"prepare": {"own": {"labelled": "/etc"}}}),
}


def cases() -> Iterator[Case]:
    named = {
        **damages(PARAMS, cuts=(0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)),
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
    for name, damage in named.items():
        yield Case(f"params: {name}", damage, VERB, names.get(name, "params.yaml"))


test_corrupt_parameters_are_refused = refused(cases())
