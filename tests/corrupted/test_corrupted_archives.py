"""Archives and files from elsewhere: damaged, hostile, or of another kind."""

import gzip
import io
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_files import tarred, zipped
from corruption import (
    WRONG,
    Case,
    Change,
    check_line,
    check_refused,
    contents,
    copied,
    in_process,
    promptkd,
    put,
    replaced,
    shortened,
    turned,
)
from file_server import file_server
from origins import ARCHIVES, served

from pd_core.core.errors import BadArtifact, BadData, PdError
from pd_core.data.acquire import sources
from pd_core.data.acquire.fetch import Limits, unpack
from pd_core.data.acquire.sources import source_of
from pd_core.models.clip import embedded_weights, load_clip

pytestmark = pytest.mark.timeout(20)

FILES = {"dtd/images/a.jpg": bytes(range(256)) * 12, "dtd/labels/train.txt": b"a.jpg\n" * 90}
PACKED = {
    "zip": zipped(FILES), "stored zip": zipped(FILES, zipfile.ZIP_STORED), "tar": tarred(FILES),
    "tar.gz": gzip.compress(tarred(FILES), mtime=0),
}  # fmt: skip
SMALL = Limits(members=50, total=2**22, small=2**20)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
        archive.addfile(tarfile.TarInfo(f"{name}/file"))
    return out.getvalue()


def linked_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo("door")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/")
    return out.getvalue()


def _archives() -> Iterator[tuple[str, bytes]]:
    for kind, data in PACKED.items():
        for share in (0.0, 0.01, 0.1, 0.2, 0.3):
            yield f"{kind} cut at {share}", data[: int(share * len(data))]
    for name in ("../out", "/out", "a/../../out", "C:/out", "a\\..\\..\\out", "x" * 3000):
        yield f"zip with {name[:9]!r}", zipped({name: b"x"})
        yield f"tar with {name[:9]!r}", tarred({name: b"x"})
    yield "tar with a link out", link("door", "/")
    yield "tar with a hard link", link("door", "/etc/passwd", tarfile.LNKTYPE)
    yield "tar with a device", link("door", "", tarfile.CHRTYPE)
    yield "tar with a pipe", link("door", "", tarfile.FIFOTYPE)
    yield "zip with a link out", linked_zip()
    yield "zip that is a bomb", zipped({"a": bytes(2**23)})
    yield "tar.gz that is a bomb", gzip.compress(tarred({"a": bytes(2**23)}))
    yield "zip of too many", zipped({str(number): b"" for number in range(60)})
    yield "tar of too many", tarred({str(number): b"" for number in range(60)})
    yield from ((kind, data) for kind, data in WRONG.items() if kind != "zeros")  # an empty tar


REFUSED = dict(_archives())


@pytest.mark.parametrize("name", REFUSED)
def test_a_corrupted_archive_is_refused(name: str, tmp_path: Path) -> None:
    archive, into = tmp_path / "some.archive", tmp_path / "inner" / "into"
    archive.write_bytes(REFUSED[name])

    with pytest.raises(PdError, match="some.archive|into") as refusal:
        unpack(archive, into, limits=SMALL)

    assert "\n" not in str(refusal.value)
    outside = {path for path in contents(tmp_path) if not path.startswith("inner/into")}
    assert outside == {"some.archive", "inner"}
    assert sum(path.stat().st_size for path in into.rglob("*")) <= SMALL.total


@pytest.mark.parametrize("kind", PACKED)
def test_turned_bits_in_archives_are_refused_or_change_no_file(kind: str, tmp_path: Path) -> None:
    archive, expected = tmp_path / "some.archive", set(FILES.values())
    refusals = 0
    for place in range(0, len(PACKED[kind]), 1 + len(PACKED[kind]) // 300):
        archive.write_bytes(turned(place / len(PACKED[kind]), place % 8)(PACKED[kind]))
        into = tmp_path / str(place)
        try:
            unpack(archive, into, limits=SMALL)
        except PdError:
            refusals += 1
            continue
        if kind != "tar":  # which has no checksum of the content; that of the download stands in
            found = {path.read_bytes() for path in into.rglob("*") if path.is_file()}
            assert found == expected, place
    assert refusals > 10


@pytest.mark.parametrize("name", ["hostile", "cut", "page", "zeros"])
def test_a_corrupted_archive_from_a_server_leaves_nothing(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = ARCHIVES["dtd"]["dtd-r1.0.1.tar.gz"]
    sent = {**WRONG, "hostile": tarred({"../../out": b""}), "cut": whole[:-20]}[name]
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    with file_server() as server, pytest.MonkeyPatch.context() as change, in_process():
        archives = {**ARCHIVES["dtd"], "dtd-r1.0.1.tar.gz": sent}
        row = served(source_of("dtd"), archives, server)
        change.setitem(sources._BY_NAME, "dtd", row)
        (project / "data" / "raw" / "archives" / "dtd").mkdir(parents=True)
        before = contents(project.parent)
        check_line(promptkd(project, "data", "fetch", "dtd"), "data set 'dtd'")
        after = contents(project.parent)
    new = {path for path in after if after[path] != before.get(path)}
    assert all(path.startswith("project/data/raw/archives/dtd/") for path in new)


# Checkpoints of the published code, and weights


def _state() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"prompt_learner.ctx": torch.ones(2, 32)}, "epoch": 20}, file)
    return file.getvalue()


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("../touched"),)


def _hostile() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": _Hostile(), "epoch": 20}, file)
    return file.getvalue()


def _foreign() -> Iterator[Case]:
    file = Path("model.pth.tar-20")
    contents: dict[str, bytes] = {
        **{f"cut at {share}": _state()[: int(share * len(_state()))] for share in (0.1, 0.5, 0.95)},
        **{f"a bit at {share}": turned(share, 2)(_state()) for share in (0.0, 0.12, 0.3, 0.97)},
        **WRONG,
        "hostile": _hostile(),
        "legacy": pickle.dumps({"state_dict": {}}),
        "hostile and legacy": pickle.dumps(_Hostile()),
        "a zip of pictures": zipped({"a.png": b"1"}),
        "of another model": _state(),
    }
    for verb in ("import-teacher", "import-student"):
        for name, data in contents.items():
            yield Case(f"{verb}: {name}", put(file, data), (verb, file.name), file.name)
        yield Case(f"{verb}: a folder", lambda p: (p / file).mkdir(), (verb, file.name), file.name)


FOREIGN = list(_foreign())


@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: case.name)
def test_a_corrupted_checkpoint_of_the_published_code_is_refused(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with in_process():
        check_refused(case, copied(tmp_path_factory.getbasetemp(), tmp_path))


WEIGHTS: dict[str, Change] = {
    **{f"cut at {share}": shortened(share) for share in (0.0, 0.001, 0.5, 0.999)},
    **{f"a bit at {share}": turned(share, 6) for share in (0.0, 0.0005, 0.1, 0.5, 0.9999)},
    **{kind: replaced(data) for kind, data in WRONG.items()},
}


# Without checksums beside them nothing tells that turned bits are not the right ones.
ALONE = [name for name in WEIGHTS if not name.startswith("a bit at") or name == "a bit at 0.0"]


@pytest.mark.parametrize(
    ("name", "with_sums"),
    [*((name, True) for name in WEIGHTS), *((name, False) for name in ALONE)],
)
def test_corrupted_weights_are_refused(name: str, with_sums: bool, tmp_path: Path) -> None:
    shipped = embedded_weights("embedded-student")
    path = tmp_path / shipped.name
    path.write_bytes(WEIGHTS[name](shipped.read_bytes()))
    if with_sums:
        (tmp_path / "SHA256SUMS").write_bytes((shipped.parent / "SHA256SUMS").read_bytes())

    with pytest.raises((BadArtifact, BadData), match=shipped.name) as refusal:
        load_clip("embedded-student", path)

    assert "\n" not in str(refusal.value)
