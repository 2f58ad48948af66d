import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_files import tarred, tree, zipped

from pd_core.core.errors import BadData, PdError
from pd_core.data.acquire.fetch import Limits, place, unpack
from pd_core.data.acquire.sources import Placement

FILES = {"dtd/images/a.jpg": b"a" * 3000, "dtd/labels/train.txt": b"a.jpg\n", "dtd/empty": b""}


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


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "some.archive"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "inner" / "into"


@pytest.mark.parametrize(
    "pack", [zipped, tarred, lambda files: gzip.compress(tarred(files))], ids=["zip", "tar", "gz"]
)
def test_archives_of_each_kind_are_unpacked_whatever_they_are_called(
    pack: Callable[[dict[str, bytes]], bytes], archive: Path, into: Path
) -> None:
    archive.write_bytes(pack(FILES))
    progress: list[tuple[int, int]] = []

    unpack(archive, into, on_progress=lambda *step: progress.append(step))

    assert tree(into) == FILES
    assert len(progress) == 3
    assert progress[0][1] > 0


def test_folders_dots_and_names_in_unicode_are_fine(archive: Path, into: Path) -> None:
    folder = special(tarfile.DIRTYPE, "./b")
    file = tarfile.TarInfo("./b/gr\u00fc\u00df.jpg")
    archive.write_bytes(tar_of(special(tarfile.DIRTYPE, "./"), folder, file))

    unpack(archive, into)

    assert tree(into) == {"b/gr\u00fc\u00df.jpg": b""}


def test_files_get_no_rights_from_the_archive(archive: Path, into: Path) -> None:
    member = tarfile.TarInfo("run")
    member.mode = 0o6777
    archive.write_bytes(tar_of(member))

    unpack(archive, into)

    assert not (into / "run").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


def test_an_archive_inside_is_unpacked_where_it_lies(archive: Path, into: Path) -> None:
    inner = gzip.compress(tarred({"101_ObjectCategories/ant/1.jpg": b"1"}))
    archive.write_bytes(zipped({"caltech-101/101.tar.gz": inner, "caltech-101/readme": b"r"}))

    unpack(archive, into, nested=["101.tar.gz"])

    assert tree(into) == {
        "caltech-101/101_ObjectCategories/ant/1.jpg": b"1",
        "caltech-101/readme": b"r",
    }


def test_a_hostile_archive_inside_is_refused_too(archive: Path, into: Path) -> None:
    archive.write_bytes(zipped({"a/inner.tar": tarred({"../../../out": b""})}))

    with pytest.raises(BadData, match="leads out"):
        unpack(archive, into, nested=["inner.tar"])


LEADING_OUT = [
    "../out",
    "/out",
    "a/../../out",
    "C:/out",
    "C:out",
    "a\\..\\..\\out",
    "\\\\host\\out",
]


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_is_refused(
    name: str, pack: Callable[[dict[str, bytes]], bytes], archive: Path, into: Path
) -> None:
    archive.write_bytes(pack({name: b"x"}))

    with pytest.raises(BadData, match="leads out of the folder") as caught:
        unpack(archive, into)

    assert "\n" not in str(caught.value)
    assert not tree(into)
    assert not list(into.parent.glob("out"))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)  # fmt: skip
def test_links_devices_and_sparse_files_in_a_tar_are_refused(
    kind: bytes, archive: Path, into: Path
) -> None:
    archive.write_bytes(tar_of(tarfile.TarInfo("good"), special(kind)))

    with pytest.raises(BadData, match="a link, a device or a sparse file, 'odd'"):
        unpack(archive, into)


def test_writing_through_a_link_is_impossible(archive: Path, into: Path, tmp_path: Path) -> None:
    link = special(tarfile.SYMTYPE, "door", str(tmp_path))
    archive.write_bytes(tar_of(link, tarfile.TarInfo("door/out")))

    with pytest.raises(BadData):
        unpack(archive, into)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(kind: int, archive: Path, into: Path) -> None:
    member = zipfile.ZipInfo("odd")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(member, "/etc/passwd")

    with pytest.raises(BadData, match="encrypted, a link or a device, 'odd'"):
        unpack(archive, into)


def test_an_encrypted_zip_is_refused(archive: Path, into: Path) -> None:
    content = bytearray(zipped({"a": b"a"}, zipfile.ZIP_STORED))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)

    with pytest.raises(BadData, match="encrypted"):
        unpack(archive, into)


@pytest.mark.parametrize("pack", [zipped, lambda files: gzip.compress(tarred(files))])
def test_a_bomb_is_stopped_while_it_unpacks(
    pack: Callable[[dict[str, bytes]], bytes], archive: Path, into: Path
) -> None:
    archive.write_bytes(pack({"zeros": bytes(20 * 2**20)}))

    with pytest.raises(BadData, match="more than 100 times its size"):
        unpack(archive, into, limits=Limits(small=2**20))
    with pytest.raises(BadData, match="more than 1000000 bytes"):
        unpack(archive, into / "again", limits=Limits(total=1_000_000))

    assert sum(len(content) for content in tree(into).values()) <= 4 * 2**20


def test_a_zip_that_lies_about_its_sizes_is_stopped(archive: Path, into: Path) -> None:
    content = bytearray(zipped({"zeros": bytes(20 * 2**20)}))
    content[22:26] = content[content.index(b"PK\x01\x02") + 24 :][:4] = (10).to_bytes(4, "little")
    position = content.index(b"PK\x01\x02") + 24
    content[position : position + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(content)

    with pytest.raises(BadData, match="damaged|more than"):
        unpack(archive, into, limits=Limits(small=2**20))


def test_a_header_that_is_a_bomb_is_stopped(archive: Path, into: Path) -> None:
    member = tarfile.TarInfo("long name")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 70 * 2**20
    archive.write_bytes(gzip.compress(member.tobuf() + bytes(member.size)))

    with pytest.raises(BadData, match="a header of 73400320 bytes"):
        unpack(archive, into)


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_too_many_members_are_refused(
    pack: Callable[[dict[str, bytes]], bytes], archive: Path, into: Path
) -> None:
    archive.write_bytes(pack({str(number): b"" for number in range(11)}))

    with pytest.raises(BadData, match="more than 10 members"):
        unpack(archive, into, limits=Limits(members=10))


def _cut_gz() -> bytes:
    return gzip.compress(tarred(FILES))[:-40]


def _cut_tar_inside_a_file() -> bytes:
    return tarred(FILES)[:2000]


def _cut_tar_between_files() -> bytes:
    return tarred(FILES)[: 512 + 3072]


def _cut_zip() -> bytes:
    return zipped(FILES)[:-30]


def _flipped_zip() -> bytes:
    content = bytearray(zipped(FILES, zipfile.ZIP_STORED))
    content[100] ^= 1
    return bytes(content)


def _flipped_gz() -> bytes:
    content = bytearray(gzip.compress(tarred(FILES)))
    content[-6] ^= 1
    return bytes(content)


def _garbage_after_a_file() -> bytes:
    return tarred(FILES)[: 512 + 3072] + b"garbage!" * 1000


def _page() -> bytes:
    return b"<!doctype html><html></html>" * 100


@pytest.mark.parametrize(
    "damaged",
    [
        _cut_gz, _cut_tar_inside_a_file, _cut_tar_between_files, _cut_zip, _flipped_zip,
        _flipped_gz, _garbage_after_a_file, _page, bytes,
    ],
)  # fmt: skip
def test_a_damaged_archive_is_refused_in_one_line(
    damaged: Callable[[], bytes], archive: Path, into: Path
) -> None:
    archive.write_bytes(damaged())

    with pytest.raises(BadData, match="is damaged or cut off .* fetch it again") as caught:
        unpack(archive, into)

    assert str(archive) in str(caught.value)


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize(
    "names", [["a", "a/b"], ["a/b", "a"], ["a", "b/", "b"]], ids=lambda names: ",".join(names)
)
def test_a_file_in_place_of_a_folder_is_refused(
    names: list[str], pack: Callable[[dict[str, bytes]], bytes], archive: Path, into: Path
) -> None:
    if pack is tarred and "b/" in names:
        archive.write_bytes(tar_of(special(tarfile.DIRTYPE, "b"), tarfile.TarInfo("b")))
    else:
        archive.write_bytes(pack(dict.fromkeys(names, b"")))

    with pytest.raises(BadData, match="has two members for one file, '[ab]'; it is refused"):
        unpack(archive, into)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a/1.jpg", "./a/1.jpg", "a//1.jpg"])
def test_two_members_for_one_file_are_refused(second: str, archive: Path, into: Path) -> None:
    for kind in ("zip", "tar"):
        if kind == "zip":
            with zipfile.ZipFile(archive, "w") as packed:
                packed.writestr("a/1.jpg", "first")
                packed.writestr(second, "second")
        else:
            archive.write_bytes(tar_of(tarfile.TarInfo("a/1.jpg"), tarfile.TarInfo(second)))

        with pytest.raises(BadData, match="has two members for one file, 'a/1.jpg'"):
            unpack(archive, into / kind)

        assert list(tree(into / kind)) == ["a/1.jpg"]


def test_names_that_differ_by_case_or_dots_are_two_files_where_the_file_system_says_so(
    archive: Path, into: Path
) -> None:
    names = ["a/1.jpg", "A/1.jpg", "a/1.jpg.", "a./1.jpg"]
    archive.write_bytes(zipped({name: name.encode() for name in names}))

    unpack(archive, into)  # one that takes them for one file has the second refused, as above

    assert tree(into) == {name: name.encode() for name in names}


def test_an_archive_for_which_the_disk_has_no_room_is_not_begun(
    archive: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(archive.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000))
    big = {"a": bytes(6_000)}
    for content in (zipped(big), tarred(big)):
        archive.write_bytes(content)

        with pytest.raises(PdError, match="unpacking '.*' needs .* where 4.9 KiB are free"):
            unpack(archive, into)

        assert not tree(into)


def test_a_zip_that_claims_too_much_is_refused_before_anything_is_written(
    archive: Path, into: Path
) -> None:
    content = bytearray(zipped({"first": b"1", "second": b"2"}))
    position = content.rindex(b"PK\x01\x02") + 24
    content[position : position + 4] = (2**32 - 2).to_bytes(4, "little")
    archive.write_bytes(content)

    with pytest.raises(BadData, match="more than 100 times its size"):
        unpack(archive, into)

    assert not tree(into)


def test_what_is_wanted_is_placed_and_the_rest_is_not(tmp_path: Path) -> None:
    for name in ("top/data/images/1.jpg", "top/data/variants.txt", "top/evaluation.m"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)

    place(tmp_path / "tree", [Placement("data", "")], tmp_path / "root" / "fgvc_aircraft")

    assert set(tree(tmp_path / "root")) == {
        "fgvc_aircraft/images/1.jpg",
        "fgvc_aircraft/variants.txt",
    }


def test_what_other_archives_placed_survives(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "pets"
    for name in ("images/old.jpg", "images/both.jpg", "annotations/list.txt"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    for name in ("images/new.jpg", "images/both.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("new")

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
    (tmp_path / "tree").mkdir()
    for name in names:
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    with pytest.raises(BadData, match=message):
        place(tmp_path / "tree", [Placement("images", "images")], tmp_path / "root")

    assert not (tmp_path / "root").exists()


def test_leavings_of_another_system_are_not_mistaken(tmp_path: Path) -> None:
    for name in ("a/images/1.jpg", "__MACOSX/images/1.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    place(tmp_path / "tree", [Placement("images", "images")], tmp_path / "root")

    assert (tmp_path / "root" / "images" / "1.jpg").is_file()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree" / "images").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").touch()

    with pytest.raises(BadData, match="root/images' is in the way"):
        place(tmp_path / "tree", [Placement("images", "images")], tmp_path / "root")
