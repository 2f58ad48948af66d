"""Lists of own images as people have them: each is read, read with a note, or refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pd_core.core.errors import PdError
from pd_core.data.acquire.verify import state_of, verify
from pd_core.data.catalog.catalogue import OwnImages, own_spec
from pd_core.data.catalog.own import notes, read_own

IMAGES = [(f"{name}/{number}.png", name) for name in ("box", "circle") for number in (1, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, _ in IMAGES:
        file = tmp_path / "lists" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    return tmp_path / "lists"


def csv(header: str, form: str = "{0},{1}", end: str = "\n") -> str:
    return end.join([header, *(form.format(*row) for row in IMAGES)]) + end


def lines(**keys: int) -> str:
    rows = ({key: row[at] for key, at in keys.items()} for row in IMAGES)
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def records(*labels: object) -> str:
    rows = zip((path for path, _ in IMAGES), labels, strict=True)
    return json.dumps([{"path": path, "label": label} for path, label in rows])


BOTH = ("box", "circle")
LABELS = csv("path,label")


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("semicolons.csv", csv("path;label", "{0};{1}"), BOTH),
        ("tabs.csv", csv("path\tlabel", "{0}\t{1}"), BOTH),
        ("table.tsv", csv("path\tlabel", "{0}\t{1}"), BOTH),
        ("commas.tsv", LABELS, BOTH),
        ("bars.csv", csv("path|label", "{0}|{1}"), BOTH),
        ("UPPER.CSV", LABELS, BOTH),
        ("lines.jsonl", lines(path=0, label=1), BOTH),
        ("blank-lines.jsonl", lines(path=0, label=1).replace("\n", "\n\n"), BOTH),
        ("hugging-face.jsonl", lines(file_name=0, category=1), BOTH),
        ("image-class.csv", csv("image,class"), BOTH),
        ("swapped.csv", csv("category,filename", "{1},{0}"), BOTH),
        ("capitals.csv", csv("File Name, Class Name "), BOTH),
        ("name-is-label.csv", csv("file,name"), BOTH),
        ("name-is-path.csv", csv("name,label"), BOTH),
        ("windows-lines.csv", csv("path,label", end="\r\n"), BOTH),
        ("old-mac-lines.csv", csv("path,label", end="\r"), BOTH),
        ("empty-rows.csv", LABELS + "\n,\n  , \n", BOTH),
        ("index.csv", csv(",path,label", "7,{0},{1}"), BOTH),
        ("blanks.csv", csv("path, label", "  {0}  ,  {1}  "), BOTH),
        ("blanks-before-quotes.csv", csv("path, label", '"{0}", "{1}"'), BOTH),
        ("backslashes.csv", LABELS.replace("/", "\\"), BOTH),
        ("dot-backslash.csv", csv("path,label", ".\\{0},{1}"), BOTH),
        ("break.csv", LABELS.replace(",circle", ',"round\nthing"'), ("box", "round thing")),
        ("windows-break.csv", LABELS.replace(",box", ',"a\r\n box"'), ("a box", "circle")),
        ("comma.csv", LABELS.replace(",box", ',"box, large"'), ("box, large", "circle")),
        ("quote.csv", LABELS.replace(",box", ',"6"" box"'), ('6" box', "circle")),
        ("nan-bread.csv", LABELS.replace(",box", ",nan bread"), ("circle", "nan bread")),
        ("utf8.csv", LABELS.replace(",box", ",café"), ("café", "circle")),
    ],
)
def test_a_list_whose_meaning_is_clear_is_read(
    name: str, content: str, classes: tuple[str, ...], folder: Path
) -> None:
    (folder / name).write_text(content, encoding="utf-8", newline="")
    own = OwnImages(labelled=f"lists/{name}")

    splits = read_own(own, folder.parent)

    assert splits.class_names == classes
    assert [item.path for item in splits.train] == [path for path, _ in IMAGES]
    assert notes(own, folder.parent) == ()


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_how_a_list_is_coded(coding: str, folder: Path) -> None:
    (folder / "list.csv").write_bytes(LABELS.replace(",box", ",café").encode(coding))

    splits = read_own(OwnImages(labelled="lists/list.csv"), folder.parent)

    assert splits.class_names == ("café", "circle")


def test_a_list_and_a_file_system_may_differ_in_the_form_of_unicode(folder: Path) -> None:
    (folder / "box" / "1.png").rename(folder / "box" / "cafe\u0301.png")  # as a Mac writes it
    (folder / "list.csv").write_text(LABELS.replace("box/1.png", "box/caf\u00e9.png"))

    splits = read_own(OwnImages(labelled="lists/list.csv"), folder.parent)

    assert splits.train[0].path == "box/cafe\u0301.png"


def test_other_names_of_splits_are_understood(folder: Path) -> None:
    parts = ("Training", "validation", "nan", "TEST")
    rows = [f"{path},{label},{part}" for (path, label), part in zip(IMAGES, parts, strict=True)]
    (folder / "list.csv").write_text("\n".join(["image,class,subset", *rows]))

    splits = read_own(OwnImages(labelled="lists/list.csv"), folder.parent)

    assert [item.path for item in splits.train] == ["box/1.png", "circle/1.png"]
    assert [item.path for item in splits.val] == ["box/2.png"]
    assert [item.path for item in splits.test] == ["circle/2.png"]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("sizes.csv", csv("path,width,label,height", "{0},8,{1},8"),
         "list 'lists/sizes.csv': the columns 'width' and 'height' are not read"),
        ("source.jsonl", lines(path=0, label=1, source=1),
         "list 'lists/source.jsonl': the columns 'source' are not read"),
        ("numbers.csv", LABELS.replace(",box", ",0").replace(",circle", ",1"),
         "'lists/numbers.csv' has numbers as class names, such as '0' and '1': CLIP reads"),
        ("numbers.json", records(0, 0, 1, 1),
         "'lists/numbers.json' has numbers as class names, such as '0' and '1'"),
        ("padded.csv", LABELS.replace(",box", ",007"),
         "'lists/padded.csv' has numbers as class names, such as '007'"),
    ],
)  # fmt: skip
def test_a_list_that_may_mean_more_is_read_with_a_note(
    name: str, content: str, note: str, folder: Path
) -> None:
    (folder / name).write_text(content)
    own = OwnImages(labelled=f"lists/{name}")

    assert len(read_own(own, folder.parent).train) == 4
    (line,) = notes(own, folder.parent)
    assert line.startswith(note)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nan.csv", LABELS.replace(",box", ",nan"), ["line 2", "'nan'", "missing", "remove"]),
        ("NaN.csv", LABELS.replace(",box", ",NaN"), ["'NaN'", "missing"]),
        ("null.csv", LABELS.replace(",box", ",null"), ["'null'", "missing"]),
        ("na.tsv", LABELS.replace(",box", ",NA"), ["'NA'", "missing"]),
        ("empty.csv", LABELS.replace(",box", ","), ["line 2", "no label"]),
        ("null.json", records("box", "box", "circle", None), ["entry 4", "no label"]),
        ("nan.json", records("box", "box", "circle", float("nan")), ["entry 4", "'nan'"]),
        ("float.json", records(1.0, 1.0, 2.0, 2.0), ["entry 1", "label 1.0", "as text"]),
        ("true.json", records(True, True, False, False), ["entry 1", "label true", "as text"]),
        ("no-header.csv", "\n".join(f"{p},{n}" for p, n in IMAGES),
         ["columns 'box/1.png', 'box'", "not path and label", "first line"]),
        ("other-columns.csv", csv("id,species"), ["columns 'id', 'species'", "not path and label"]),
        ("one-hot.csv", csv("image,box,circle", "{0},1,0"), ["not path and label"]),
        ("two-labels.csv", csv("path,label,class_name", "{0},0,{1}"),
         ["'label', 'class_name'", "may all be the label", "keep one"]),
        ("two-paths.csv", csv("path,file_name,label", "{0},{0},{1}"), ["may all be the path"]),
        ("comma-unquoted.csv", LABELS.replace(",box", ",box, large"),
         ["line 2", "more than the 2 values", "in quotes"]),
        ("quote-open.csv", LABELS.replace(",box", ',"box'), ["is no CSV", "correct it"]),
        ("drive.csv", csv("path,label", "C:\\photos\\{0},{1}"),
         ["line 2", "C:", "below the list's folder", "without a drive"]),
        ("absolute.csv", csv("path,label", "/photos/{0},{1}"), ["without a drive, a leading"]),
        ("address.csv", csv("path,label", "https://host/{0},{1}"), ["https", "below the list's"]),
        ("above.csv", csv("path,label", "..\\{0},{1}"), ["'..'"]),
        ("elsewhere.csv", csv("path,label", "lists/{0},{1}"),
         ["4 of the 4 images", "'lists/box/1.png'", "paths start at the list's folder"]),
        ("split.csv", csv("path,label,split", "{0},{1},holdout"),
         ["split 'holdout'", "give train, val or test"]),
        ("void.csv", "", ["lists no images"]),
        ("header.csv", "path,label\n", ["lists no images"]),
        ("void.jsonl", "\n", ["lists no images"]),
        ("lines.json", lines(path=0, label=1), ["is not JSON", "suffix .jsonl"]),
        ("cut.jsonl", lines(path=0, label=1)[:-5], ["line 4", "is not JSON", "correct it"]),
        ("mapping.json", json.dumps(dict(IMAGES)), ["is no JSON list", "path, label"]),
        ("pairs.json", json.dumps(IMAGES), ["entry 1", "give {path, label}"]),
    ],
)  # fmt: skip
def test_a_list_whose_meaning_is_unclear_is_refused(
    name: str, content: str, words: list[str], folder: Path
) -> None:
    (folder / name).write_text(content)

    with pytest.raises(PdError) as caught:
        read_own(OwnImages(labelled=f"lists/{name}"), folder.parent)

    line = str(caught.value)
    assert name in line
    assert not [word for word in words if word not in line]
    assert "download" not in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            LABELS.replace(",circle", ",café").encode("cp1252"),
            ["not UTF-8 in line 4"],
        ),
        (LABELS.encode("utf-16-le"), ["not text in UTF-8", "save it as UTF-8"]),
        (b"PK\x03\x04\x14\0\x08\x08\x08\0", ["save it as UTF-8 (in Excel: 'CSV UTF-8')"]),
        (b"\xff\xfep\0a", ["not UTF-8 in line 1"]),
    ],
)
def test_a_list_in_another_code_is_refused_in_words_for_its_owner(
    content: bytes, words: list[str], folder: Path
) -> None:
    (folder / "list.csv").write_bytes(content)

    with pytest.raises(PdError) as caught:
        read_own(OwnImages(labelled="lists/list.csv"), folder.parent)

    assert not [word for word in words if word not in str(caught.value)]
    assert "download" not in str(caught.value)


def test_an_invalid_list_is_a_state_of_its_data_set(folder: Path) -> None:
    (folder / "list.csv").write_text(LABELS.replace(",box", ","))
    spec = own_spec("mine", OwnImages(labelled="lists/list.csv"))

    assert state_of(spec, folder.parent) == "invalid labels"
    (line,) = verify(spec, folder.parent).problems
    assert "line 2 has no label" in line


@pytest.mark.parametrize("name", ["list.txt", "list.xlsx", "list.parquet", "list"])
def test_a_file_that_is_no_list_is_not_taken_for_a_missing_folder(name: str, folder: Path) -> None:
    (folder / name).write_text(LABELS)

    with pytest.raises(PdError) as caught:
        read_own(OwnImages(labelled=f"lists/{name}"), folder.parent)

    assert "is neither a folder nor a list" in str(caught.value)
    assert ".csv, .tsv, .json, .jsonl" in str(caught.value)
