"""Files from elsewhere run nothing, lead nowhere and take no more memory than they account for."""

import ast
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pd_core.core.errors import BadData, MissingFile
from pd_core.data.acquire.image_files import decode_all
from pd_core.data.catalog import label_files
from pd_core.data.catalog.catalogue import OwnImages
from pd_core.data.catalog.label_files import read_json, read_matlab
from pd_core.data.catalog.own import own_sources, own_unlabelled, read_own
from pd_core.data.loading import decode
from pd_core.data.loading.decode import ImageStore

ROOT = Path(__file__).parents[2]

# The source itself

FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.loads", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.load",
    "torch.jit.load", "joblib.load", "shelve.open",
}  # fmt: skip
ALLOWED = {
    ("tests/parity/test_hostile_files.py", "torch.load"),  # shows that a file would do harm
}


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls with their names; `yaml.load` only of the module, not of an object."""
    nodes = list(ast.walk(tree))
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    for node in nodes:
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if "yaml" in modules or not name.startswith("yaml."):
                yield name, node


def _unsafe(call: ast.Call, name: str) -> bool:
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if (
        keywords.get("shell", "False") != "False"
        or keywords.get("allow_pickle", "False") != "False"
    ):
        return True
    if name == "torch.load" and keywords.get("weights_only") == "True":
        return False
    if name == "YAML":
        return keywords.get("typ", "'rt'") not in ("'safe'", "'rt'")
    return name in FORBIDDEN


def test_no_source_loads_or_runs_what_it_should_not() -> None:
    unsafe = set()
    for folder in ("pd_core", "flows", "benchmarks", "recipes", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, call in _calls(ast.parse(path.read_text())):
                if _unsafe(call, name):
                    unsafe.add((path.relative_to(ROOT).as_posix(), name))

    assert unsafe == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(a, allow_pickle=True)",
        "subprocess.run(a, shell=True)", "YAML(typ='unsafe')", "import yaml; yaml.load(a, Loader)",
        "eval(a)", "torch.jit.load(a)", "os.system(a)", "pickle.load(a)",
    ],
)  # fmt: skip
def test_the_walk_finds_each_kind(line: str) -> None:
    assert [name for name, call in _calls(ast.parse(line)) if _unsafe(call, name)]


# Pictures


def png(width: int, height: int) -> bytes:
    """Make a PNG that declares a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (30_000, 5_000), (10**6, 10**6)])
@pytest.mark.parametrize("zipped", [False, True])
def test_pictures_of_too_many_pixels_are_refused(
    width: int, height: int, zipped: bool, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(png(width, height))
    if zipped:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
            file.write(tmp_path / "x.png", "x.png")

    with pytest.raises(BadData, match="x.png' is not a readable image .*pixels"):
        ImageStore(tmp_path / "x.zip" if zipped else tmp_path).open("x.png")
    if not zipped:
        (finding,) = decode_all(tmp_path, ["x.png"], workers=1)
        assert "decompression bomb" in finding[1]


def test_files_of_too_many_bytes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MOST_BYTES", 1000)
    (tmp_path / "x.png").write_bytes(png(1, 1) + bytes(1000))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(tmp_path / "x.png", "x.png")

    for root in (tmp_path, tmp_path / "x.zip"):
        with pytest.raises(BadData, match=r"\(\d+ bytes, more than 1000\)"):
            ImageStore(root).open("x.png")


def test_a_member_of_a_zip_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.png", png(1, 1) + bytes(10**6))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    start = content.index(b"PK\x01\x02") + 24
    content[start : start + 4] = (100).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)

    with pytest.raises(BadData, match="not a readable image"):
        ImageStore(tmp_path / "x.zip").open("x.png")


def test_postscript_is_not_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'marker'}'\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())

    with pytest.raises(BadData, match="cannot identify image file"):
        ImageStore(tmp_path).open("x.png")

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "a/../../x.png", "..", "C:x.png", ""])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_hostile_list_cannot_open_what_is_elsewhere(
    path: str, zipped: bool, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "root").mkdir()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(tmp_path / "x.png", "../x.png")

    with pytest.raises(MissingFile, match="is outside of"):
        ImageStore(tmp_path / "x.zip" if zipped else tmp_path / "root").open(path)


# Lists and label files


def test_label_files_beyond_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_files, "MAX_BYTES", 1000)
    for name in ("a.json", "a.mat"):
        (tmp_path / name).write_bytes(b" " * 1001)
    with pytest.raises(BadData, match="has 1001 bytes, more than the 1000"):
        read_json(tmp_path / "a.json")
    with pytest.raises(BadData, match="has 1001 bytes, more than the 1000"):
        read_matlab(tmp_path / "a.mat", "labels")


HEADER = b"MATLAB 5.0".ljust(124) + b"\0\1IM"


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def cell(content: bytes, name: bytes = b"") -> bytes:
    flags, dims = struct.pack("<II", 1, 0), struct.pack("<ii", 1, 1)
    return element(14, element(6, flags) + element(5, dims) + element(1, name) + content)


def deep(depth: int) -> bytes:
    number = struct.pack("<II", 6, 0), struct.pack("<ii", 1, 1), struct.pack("<d", 1.0)
    inner = element(14, element(6, number[0]) + element(5, number[1]) + element(1, b"")
                    + element(9, number[2]))  # fmt: skip
    for _ in range(depth):
        inner = cell(inner)
    return cell(inner, b"labels")


def test_matrices_in_matrices_are_read_to_a_depth_and_refused_below(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    file.write_bytes(HEADER + deep(5))
    assert read_matlab(file, "labels") == 1.0

    for content in (deep(2000), element(15, zlib.compress(deep(2000)))):
        file.write_bytes(HEADER + content)
        with pytest.raises(BadData, match="too deep"):
            read_matlab(file, "labels")


def test_a_matlab_file_that_claims_or_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.mat"
    file.write_bytes(HEADER + struct.pack("<II", 14, 2**31) + bytes(100))
    with pytest.raises(BadData, match="claims 2147483648 bytes, 100 are left"):
        read_matlab(file, "labels")

    monkeypatch.setattr(label_files, "MAX_BYTES", 10_000)
    file.write_bytes(HEADER + element(15, zlib.compress(bytes(20_000))))
    with pytest.raises(BadData, match="unpacks to more than 10000 bytes"):
        read_matlab(file, "labels")


def test_a_field_of_a_list_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,label\n{'a' * 200_000}.png,cat\n")

    with pytest.raises(BadData, match="is no CSV .field larger than field limit"):
        read_own(OwnImages(labelled="list.csv"), tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../b"])
def test_own_pictures_are_below_the_data_root(path: str, tmp_path: Path) -> None:
    for read in (read_own, own_unlabelled, own_sources):
        with pytest.raises(BadData, match="leads out of the data root"):
            read(OwnImages(labelled="labelled", unlabelled=path), tmp_path)


def test_a_folder_may_be_a_link_but_not_to_one_that_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "pictures").symlink_to(tmp_path / "elsewhere")
    pictures = OwnImages(labelled="labelled", unlabelled="pictures")
    assert own_unlabelled(pictures, tmp_path / "root") == ("pictures/1.png",)

    (tmp_path / "elsewhere" / "again").symlink_to(".")
    with pytest.raises(BadData, match="is a link to a folder that it is in"):
        own_unlabelled(pictures, tmp_path / "root")
