"""Images, lists of images and prepared data sets that are corrupt or lead out of their folder."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corruption import (
    CLASSES,
    OWN,
    PREPARED,
    RAW,
    WRONG,
    ZIPPED,
    Case,
    Change,
    Damage,
    contents,
    copied,
    cut,
    damages,
    flip,
    folder_for,
    in_process,
    linked,
    promptkd,
    put,
    refused,
    replaced,
    shortened,
    turned,
    unreadable,
)

from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadArtifact
from pd_core.data.loading import prepared

PNG, JPEG = RAW / "labelled" / "0-0.png", RAW / "unlabelled" / "1-1.jpg"
LIST = RAW / "labelled.csv"
ZIP = Path("data/prepare") / ZIPPED / "images.zip"
SUMS = PREPARED / "SHA256SUMS"
HARMLESS = {  # damage the line of a file that the verb does not read
    "cut at 0.9": cut(SUMS, 0.9), "a bit at 0.1": flip(SUMS, 0.1), "a bit at 0.8": flip(SUMS, 0.8),
}  # fmt: skip
HOSTILE = {
    "above": "../../../../beside.txt", "absolute": "/etc/passwd", "zero byte": "a\0.png",
    "a backslash": "..\\..\\x.png", "a drive": "C:x.png", "empty": "", "endless": "a" * 5000,
    "above and below": "labelled/../../../x.png", "dots": "..", "half a character": "\ud800.png",
}  # fmt: skip


def declared(width: int, height: int) -> bytes:
    """Return a PNG that claims a size without having the pixels."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    chunks = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def trusted(damage: Damage) -> Damage:
    """Damage images, and remove the fingerprint that they are compared with."""

    def both(project: Path) -> None:
        damage(project)
        (project / PREPARED / "fingerprint.json").unlink()
        write_sums(project / PREPARED)

    return both


def in_zip(member: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a picture in the zip file, and write valid checksums."""

    def damage(project: Path) -> None:
        with zipfile.ZipFile(project / ZIP) as old:
            pictures = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(project / ZIP, "w") as new:
            for name, data in pictures.items():
                new.writestr(name, change(data) if name == member else data)
        write_sums((project / ZIP).parent)

    return damage


def entry(key: str, value: object, *, sums: bool = True) -> Damage:
    """Set an entry of a prepared data set's `split.json`, with valid checksums."""

    def damage(project: Path) -> None:
        file = project / PREPARED / "split.json"
        split: dict[str, Any] = json.loads(file.read_text())
        split[key] = value
        file.write_text(json.dumps(split))
        if sums:
            write_sums(file.parent)

    return damage


def rows(text: str) -> Damage:
    """Write another list of labelled pictures."""
    return lambda project: (project / LIST).write_text(text, errors="surrogatepass")


def unlabelled(*paths: object) -> Damage:
    """Write another list of unlabelled pictures, with valid checksums."""

    def damage(project: Path) -> None:
        (project / PREPARED / "unlabelled.json").write_text(json.dumps(paths))
        write_sums(project / PREPARED)

    return damage


def cases() -> Iterator[Case]:
    for path, verb in ((PNG, "teacher"), (JPEG, "student")):
        named = {
            **damages(
                path,
                cuts=(0, 0.1, 0.5, 0.9),
                bits=((0, 1), (0.1, 0), (0.3, 7), (0.5, 3), (0.7, 2), (0.999, 5)),
            ),
            "endless": put(path, declared(100_000, 100_000)),
            "a link to nowhere": linked(path, "nowhere"),
        }
        for name, damage in named.items():
            yield Case(f"{path.suffix}: {name}", damage, (verb, OWN), OWN)
            if not name.startswith("a bit") and name not in ("a link to nowhere", "a folder"):
                title = f"{path.suffix}, without a fingerprint: {name}"
                yield Case(title, trusted(damage), (verb, OWN), path.name)
    broken: dict[str, Change] = {
        "cut": shortened(0.5),
        "a bit": turned(0.4, 2),
        "endless": replaced(declared(100_000, 100_000)),
        **{kind: replaced(data) for kind, data in WRONG.items()},
    }
    for name, change in broken.items():
        yield Case(f"in a zip: {name}", in_zip("0-1.png", change), ("teacher", ZIPPED), "0-1.png")
    for share in (0, 0.3, 0.9, 0.999):
        yield Case(f"zip: cut at {share}", cut(ZIP, share), ("teacher", ZIPPED), "images.zip")
        yield Case(f"zip: a bit at {share}", flip(ZIP, share), ("teacher", ZIPPED), "images.zip")
    yield Case("zip: a folder", folder_for(ZIP), ("teacher", ZIPPED), ZIPPED)
    yield Case("zip: on a broken disk", unreadable(ZIP), ("teacher", ZIPPED), "images.zip")
    yield from _lists()
    yield from _prepared()


def _lists() -> Iterator[Case]:
    verb, name = ("data", "fingerprint", OWN), LIST.name
    whole = [f"labelled/{label}-0.png,{CLASSES[label]}" for label in range(4)]
    for title, path in HOSTILE.items():
        text = "\n".join(["path,label", *whole, f'"{path}",beech'])
        yield Case(f"list: path {title}", rows(text), verb, name)
    texts = {
        "empty": "", "no rows": "path,label\n", "no columns": "a,b\n1,2\n",
        "a value more": "path,label\nlabelled/0-0.png,beech,1,2\n",
        "an open quote": 'path,label\nlabelled/0-0.png,"beech\n',
    }  # fmt: skip
    for title, text in texts.items():
        yield Case(f"list: {title}", rows(text), verb, name)
    yield Case("list: latin 1", put(LIST, "path,label\n\u00e9,b".encode("latin-1")), verb, name)
    yield Case("list: a folder", folder_for(LIST), verb, name)
    yield Case("list: on a broken disk", unreadable(LIST), verb, name)
    for share in (0.2, 0.5, 0.9):
        yield Case(f"list: cut at {share}", cut(LIST, share), ("prepare", OWN), OWN)
        yield Case(f"list: a bit at {share}", flip(LIST, share), ("prepare", OWN), OWN)
    file = Path("fingerprints") / f"{OWN}.json"
    for title, damage in {
        "cut": cut(file, 0.5), "a bit": flip(file, 0.4, 1), "a page": put(file, WRONG["page"]),
        "a folder": folder_for(file), "a list": put(file, b"[]"),
        "brackets": put(file, b"[" * 9999),
        "of another format": put(file, b'{"format": 9}'), "on a broken disk": unreadable(file),
    }.items():  # fmt: skip
        yield Case(f"fingerprint: {title}", damage, ("prepare", OWN), OWN)


def _prepared() -> Iterator[Case]:
    split, paths, sums = PREPARED / "split.json", PREPARED / "unlabelled.json", SUMS
    for file, verb in ((split, "class-vectors"), (paths, "student"), (sums, "class-vectors")):
        named = damages(file, cuts=(0, 0.2, 0.9), bits=((0.1, 0), (0.4, 0), (0.8, 0)))
        named["brackets"] = put(file, b"[" * 100_000)
        for name, damage in named.items():
            if file is sums and name in HARMLESS:
                continue
            yield Case(f"{file.name}: {name}", damage, (verb, OWN), OWN)
    for title, label in {
        "nan": float("nan"), "infinite": float("inf"), "negative": -1, "beyond": 4, "half": 0.5,
        "true": True, "text": "ash", "null": None, "a list": [1],
    }.items():  # fmt: skip
        for key in ("few_shot", "test"):
            yield Case(
                f"split.json: label {title} in {key}",
                entry(key, [["labelled/0-0.png", label]]),
                ("class-vectors", OWN),
                "split.json",
            )
    wrong: dict[str, tuple[str, object]] = {
        "classes a number": ("classes", 3), "classes numbers": ("classes", [1, 2, 3, 4]),
        "classes empty": ("classes", []), "base beyond": ("base_classes", 9),
        "base negative": ("base_classes", -1), "protocol unknown": ("protocol", "magic"),
        "rows of one": ("few_shot", [["a.png"]]), "rows a text": ("few_shot", "a.png"),
        "images a number": ("images", 3),
    }  # fmt: skip
    for title, (key, value) in wrong.items():
        yield Case(f"split.json: {title}", entry(key, value), ("class-vectors", OWN), "split.json")
    yield Case("split.json: changed", entry("seed", 2, sums=False), ("evaluate", OWN), "split.json")
    for title, path in HOSTILE.items():
        yield Case(f"split.json: images {title}", entry("images", path), ("teacher", OWN))
        names = "training" if title == "empty" else ""
        yield Case(f"unlabelled.json: path {title}", unlabelled(path), ("student", OWN), names)
    for title, odd in {"a number": 3, "null": None, "a list": ["a.png"]}.items():
        yield Case(f"unlabelled.json: {title}", unlabelled(odd), ("student", OWN), OWN)


test_corrupt_images_and_lists_are_refused = refused(cases())


@pytest.mark.parametrize("name", HARMLESS)
def test_corrupt_lines_that_a_stage_does_not_read_change_nothing(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    HARMLESS[name](project)
    before = {path: content[-1] for path, content in contents(project.parent).items()}

    with in_process():
        assert promptkd(project, "class-vectors", OWN).status == 0

    assert {path: content[-1] for path, content in contents(project.parent).items()} == before


@pytest.mark.parametrize("name", ["split.json", "unlabelled.json"])
def test_every_flipped_bit_of_a_prepared_list_is_detected(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    file = project / PREPARED / name
    is_split = name == "split.json"
    read: Damage = prepared.read_prepared if is_split else prepared.read_unlabelled
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        file.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        with pytest.raises(BadArtifact):
            read(file.parent)
