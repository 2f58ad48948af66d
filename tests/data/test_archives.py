"""Archives are unpacked completely or refused in one line, and nothing is written outside."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive_files import tarred, tree, zipped

from pd_core.core.errors import BadData, PdError
from pd_core.data.acquire.archives import Limits, place, unpack
from pd_core.data.acquire.sources import Placement

FILES = {
    "dtd/images/a.jpg": bytes(range(256)) * 12, "dtd/labels/train.txt": b"a.jpg\n" * 90,
    "dtd/empty": b"",
}  # fmt: skip
LIMITS = Limits(members=50, total=2**22, small=2**20)
Pack = Callable[[dict[str, bytes]], bytes]


def gzipped(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tarred(files), mtime=0)


def stored(files: dict[str, bytes]) -> bytes:
    return zipped(files, zipfile.ZIP_STORED)


PACKS: dict[str, Pack] = {"zip": zipped, "stored zip": stored, "tar": tarred, "tar.gz": gzipped}
both_formats = pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])


def tar_of(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return out.getvalue()


def special(kind: bytes, name: str = "odd", linkname: str = "dtd/images/a.jpg") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    return member


def zip_of(kind: int) -> bytes:
    """Return a zip file with a member of a kind, such as a link."""
    out = io.BytesIO()
    member = zipfile.ZipInfo("odd")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr(member, "/etc/passwd")
    return out.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "some.archive"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "inner" / "into"


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_archives_of_each_format_are_unpacked_whatever_their_name(
    pack: Pack, archive: Path, into: Path
) -> None:
    archive.write_bytes(pack(FILES))
    progress: list[tuple[int, int]] = []

    unpack(archive, into, on_progress=lambda *step: progress.append(step))

    assert tree(into) == FILES
    assert len(progress) == 3
    assert progress[0][1] > 0


def test_folders_dots_and_unicode_names_are_allowed_and_permissions_ignored(
    archive: Path, into: Path
) -> None:
    folder, file = special(tarfile.DIRTYPE, "./b"), tarfile.TarInfo("./b/gr\u00fc\u00df.jpg")
    file.mode = 0o6777
    archive.write_bytes(tar_of(special(tarfile.DIRTYPE, "./"), folder, file))

    unpack(archive, into)

    assert tree(into) == {"b/gr\u00fc\u00df.jpg": b""}
    mode = (into / "b" / "gr\u00fc\u00df.jpg").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


def test_an_archive_inside_is_unpacked_in_its_folder_and_checked(archive: Path, into: Path) -> None:
    inner = gzipped({"101_ObjectCategories/ant/1.jpg": b"1"})
    archive.write_bytes(zipped({"caltech-101/101.tar.gz": inner, "caltech-101/readme": b"r"}))

    unpack(archive, into, nested=["101.tar.gz"])

    assert tree(into) == {
        "caltech-101/101_ObjectCategories/ant/1.jpg": b"1",
        "caltech-101/readme": b"r",
    }
    archive.write_bytes(zipped({"a/inner.tar": tarred({"../../../out": b""})}))
    with pytest.raises(BadData, match="leads out"):
        unpack(archive, into, nested=["inner.tar"])


def changed(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def encrypted() -> bytes:
    content = stored({"a": b"a"})
    content = changed(content, 6, bytes([content[6] | 1]))
    flags = content.index(b"PK\x01\x02") + 8
    return changed(content, flags, bytes([content[flags] | 1]))


def understated() -> bytes:
    """Return a zip file whose member is larger than both of its headers claim."""
    content, size = zipped({"zeros": bytes(2**23)}), (10).to_bytes(4, "little")
    return changed(changed(content, 22, size), content.index(b"PK\x01\x02") + 24, size)


def overstated() -> bytes:
    content = zipped({"first": b"1", "second": b"2"})
    return changed(content, content.rindex(b"PK\x01\x02") + 24, (2**32 - 2).to_bytes(4, "little"))


def large_header() -> bytes:
    member = tarfile.TarInfo("long name")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 70 * 2**20
    return gzip.compress(member.tobuf() + bytes(member.size))


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """Yield archives to refuse: name, content, and a part of the error."""
    damaged, tar, flipped = "is damaged or cut off", tarred(FILES), stored(FILES)
    for kind, pack in PACKS.items():
        data = pack(FILES)
        for share in (0.0, 0.01, 0.1, 0.3):
            yield f"{kind} cut at {share}", data[: int(share * len(data))], damaged
    yield "tar cut between files", tar[: 512 + 3072], damaged
    yield "tar with garbage after a file", tar[: 512 + 3072] + b"garbage!" * 1000, damaged
    yield "zip with a flipped bit", changed(flipped, 100, bytes([flipped[100] ^ 1])), damaged
    packed = gzipped(FILES)
    yield "tar.gz with a wrong checksum", changed(packed, -6, bytes([packed[-6] ^ 1])), damaged
    yield "HTML page", b"<!doctype html><html></html>" * 100, damaged
    for name in (
        "../out",
        "/out",
        "a/../../out",
        "C:/out",
        "C:out",
        "a\\..\\..\\out",
        "\\\\h\\out",
    ):
        yield f"zip with {name!r}", zipped({name: b"x"}), "leads out of the folder"
        yield f"tar with {name!r}", tarred({name: b"x"}), "leads out of the folder"
    yield "zip with a name too long", zipped({"x" * 3000: b"x"}), "into"
    for tar_kind in (
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ):  # fmt: skip
        content = tar_of(tarfile.TarInfo("good"), special(tar_kind))
        yield f"tar with kind {tar_kind!r}", content, "a link, a device or a sparse file, 'odd'"
    door = special(tarfile.SYMTYPE, "door", "/")
    yield "tar that writes through a link", tar_of(door, tarfile.TarInfo("door/out")), "a link"
    for zip_kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        yield f"zip with kind {zip_kind}", zip_of(zip_kind), "encrypted, a link or a device, 'odd'"
    yield "encrypted zip", encrypted(), "encrypted"
    bomb = {"zeros": bytes(3 * 2**20)}
    yield "zip that is a bomb", zipped(bomb), "more than 100 times its size"
    yield "tar.gz that is a bomb", gzipped(bomb), "more than 100 times its size"
    yield "tar above the limit", tarred({"zeros": bytes(2**22)}), "more than 4194304 bytes"
    yield "zip that understates a size", understated(), damaged
    yield "zip that overstates a size", overstated(), "more than 4194304 bytes"
    yield "tar.gz with a large header", large_header(), "a header of 73400320 bytes"
    many = {str(number): b"" for number in range(51)}
    yield "zip of too many members", zipped(many), "more than 50 members"
    yield "tar of too many members", tarred(many), "more than 50 members"
    for names in (["a", "a/b"], ["a/b", "a"]):
        files = dict.fromkeys(names, b"")
        yield f"zip with {names}", zipped(files), "has two members for one file, 'a'"
        yield f"tar with {names}", tarred(files), "has two members for one file, 'a'"
    folder = tar_of(special(tarfile.DIRTYPE, "b"), tarfile.TarInfo("b"))
    yield "tar with a folder and a file", folder, "has two members for one file, 'b'"
    for second in ("a/1.jpg", "./a/1.jpg", "a//1.jpg"):
        members = tar_of(tarfile.TarInfo("a/1.jpg"), tarfile.TarInfo(second))
        yield f"tar with a/1.jpg and {second}", members, "has two members for one file, 'a/1.jpg'"
    yield "zip with ./a and a", zipped({"a": b"", "./a": b""}), "has two members for one file, 'a'"


HOSTILE = {name: (content, message) for name, content, message in hostile()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_corrupt_or_hostile_archive_is_refused(
    name: str, archive: Path, into: Path, tmp_path: Path
) -> None:
    content, message = HOSTILE[name]
    archive.write_bytes(content)

    with pytest.raises(PdError) as caught:
        unpack(archive, into, limits=LIMITS)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"some.archive", "inner"}
    assert sum(map(len, tree(into.parent).values())) <= LIMITS.total
    assert not any(path.is_symlink() for path in into.parent.rglob("*"))


@pytest.mark.parametrize("kind", PACKS)
def test_flipped_bits_are_refused_or_change_no_file(kind: str, archive: Path, into: Path) -> None:
    data, refused = PACKS[kind](FILES), 0
    for place_ in range(0, len(data), 1 + len(data) // 300):
        archive.write_bytes(changed(data, place_, bytes([data[place_] ^ 1 << place_ % 8])))
        folder = into / str(place_)
        try:
            unpack(archive, folder, limits=LIMITS)
        except PdError:
            refused += 1
        else:
            if kind != "tar":  # it has no checksum of the content; that of the download covers it
                assert set(tree(folder).values()) == set(FILES.values()), place_
    assert refused > 10


def test_names_that_the_file_system_distinguishes_are_two_files(archive: Path, into: Path) -> None:
    names = ["a/1.jpg", "A/1.jpg", "a/1.jpg.", "a./1.jpg"]
    archive.write_bytes(zipped({name: name.encode() for name in names}))

    unpack(archive, into)

    assert tree(into) == {name: name.encode() for name in names}


@both_formats
def test_an_archive_needs_room_on_the_disk(
    pack: Pack, archive: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(archive.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000))
    archive.write_bytes(pack({"a": bytes(6_000)}))

    with pytest.raises(PdError, match="unpacking '.*' needs .* where 4.9 KiB are free"):
        unpack(archive, into)

    assert not tree(into)


def fill(folder: Path, *names: str, content: str = "") -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_wanted_parts_are_placed_and_others_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "tree", "top/data/images/1.jpg", "top/data/a.txt", "top/b.m", "__MACOSX/data/c")

    place(tmp_path / "tree", [Placement("data", "")], tmp_path / "root" / "fgvc_aircraft")

    assert set(tree(tmp_path / "root")) == {"fgvc_aircraft/images/1.jpg", "fgvc_aircraft/a.txt"}


def test_files_of_other_archives_stay(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    fill(folder, "images/old.jpg", "images/both.jpg", "annotations/list.txt", content="old")
    fill(tmp_path / "tree", "images/new.jpg", "images/both.jpg", content="new")

    place(tmp_path / "tree", [Placement("images", "images")], folder)

    assert tree(folder) == {
        "annotations/list.txt": b"old",
        "images/both.jpg": b"new",
        "images/new.jpg": b"new",
        "images/old.jpg": b"old",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["other/1.jpg"], "has no 'images', but other; its layout"),
        ([], "has no 'images', but nothing"),
        (["a/images/1.jpg", "b/images/1.jpg"], "'images' twice: 'a/images' and 'b/images'"),
    ],
)
def test_an_archive_of_another_layout_is_refused_before_anything_moves(
    names: list[str], message: str, tmp_path: Path
) -> None:
    fill(tmp_path / "tree", *names)

    with pytest.raises(BadData, match=message):
        place(tmp_path / "tree", [Placement("images", "images")], tmp_path / "root")

    assert not (tmp_path / "root").exists()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "tree", "images/1.jpg")
    fill(tmp_path / "root", "images")

    with pytest.raises(BadData, match="root/images' is in the way"):
        place(tmp_path / "tree", [Placement("images", "images")], tmp_path / "root")
