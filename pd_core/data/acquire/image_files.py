"""Listed image files: which are missing, which are no images, which cannot be decoded."""

from __future__ import annotations

import multiprocessing
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

from pd_core.core.errors import BadData
from pd_core.core.hooks import OnProgress
from pd_core.data.loading.splits import Splits

_MAX_LINES = 10  # missing folders that get a line each
_HEAD = 512  # bytes; an HTML page may begin with comments
_THREADS = 8  # reading releases the lock
_CHUNK = 64  # files that a thread or process takes at a time

_IMAGE = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|BM.{4}\0\0\0\0"
    rb"|RIFF.{4}WEBP"
    rb"|II[*+]\0|MM\0[*+]"  # TIFF
    rb"|.{4}ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mi[fa]\w|msf1)"  # AVIF and HEIC
    rb"|\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51"  # JPEG 2000
    rb"|P[1-6][\s#]",  # PPM and its relatives
    re.DOTALL,
)
_OTHERS = (
    (re.compile(rb"<(!doctype html|html|head|body)\b", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\A\s*<(\?xml|svg)\b"), "an XML file"),
    (re.compile(rb"\A\s*[{\[]"), "a JSON file"),
    (re.compile(rb"\APK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\A\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"\A%PDF"), "a PDF file"),
    (re.compile(rb"\Aversion https://git-lfs"), "a Git LFS pointer"),
)


def check_lists(
    root: Path,
    splits: Splits,
    unlabelled: Sequence[str] = (),
    *,
    workers: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Check that every listed image is there, in one list, and an image; return a line a problem.

    Args:
        root: Folder that the paths are below.
        splits: Labelled images.
        unlabelled: Paths of the unlabelled images.
        workers: Number of processes that decode; 0 to read the first bytes only.
        on_progress: Called with files done and total files.
    """
    class_of = dict.fromkeys(unlabelled, "")
    class_of |= {item.path: item.name for item in chain(*splits.lists.values())}
    files = _find(root, class_of)
    problems = _empty_classes(splits) + _shared(splits, files.targets) + files.problems
    if not workers:
        return problems + _grouped(_read_heads(root, files.paths, on_progress))
    corrupt = decode_all(root, files.paths, workers=workers, on_progress=on_progress)
    return problems + [f"'{path}' is {reason}: replace it" for path, reason in corrupt]


def _empty_classes(splits: Splits) -> list[str]:
    """Name classes without an image in a list; empty lists are left to the counts."""
    problems = []
    for name, items in splits.lists.items():
        present = {item.name for item in items}
        absent = [label for label in splits.class_names if present and label not in present]
        if absent:
            subject = f"class '{absent[0]}' has"
            if len(absent) > 1:
                subject = f"{len(absent)} classes, '{absent[0]}' the first, have"
            problems.append(f"{subject} no {name} image: complete the list")
    return problems


def _shared(splits: Splits, targets: Mapping[str, str]) -> list[str]:
    """Name images that are in two lists by way of a link; the reader refuses all others."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, items in splits.lists.items():
        files = {targets.get(item.path, item.path): item.path for item in items}
        for file, path in files.items():
            if owner.setdefault(file, name) != name:
                shared.setdefault((owner[file], name), []).append(path)
    return [
        f"{_several(paths)} is in both {first} and {second}: keep it in one list"
        for (first, second), paths in shared.items()
    ]


def _entries(folder: Path) -> dict[str, os.DirEntry[str]] | None:
    """Return the entries of a folder by name; None if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass
class _Files:
    """Listed images on disk."""

    paths: list[str] = field(default_factory=list)  # regular files, in the order listed
    targets: dict[str, str] = field(default_factory=dict)  # of links, below the image folder
    problems: list[str] = field(default_factory=list)


def _find(root: Path, class_of: Mapping[str, str]) -> _Files:
    """Look for listed images, folder by folder: one by one takes too long for a million.

    The data root, the image folder and folders below may be links; an image may be a link to a
    file of its own folder or of the image folder. `class_of` has the class of each by its path,
    empty for an unlabelled image.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for path in class_of:
        folder, _, name = path.rpartition("/")
        wanted[folder].append(name)
    files = _Files()
    absent: dict[str, list[str]] = {}
    for folder, names in wanted.items():
        entries = _entries(root / folder)
        if entries is None:
            absent[folder] = names
            continue
        gone = [_join(folder, name) for name in names if name not in entries]
        if gone:
            title = _title(folder, {class_of[_join(folder, name)] for name in names})
            counts = f"expected {len(names)} images, found {len(names) - len(gone)}"
            problem = f"{len(gone)} images of {title} are missing, the first is '{gone[0]}'"
            if not entries:
                problem = f"{title} is empty"
            elif len(gone) == 1:
                problem = f"image '{gone[0]}' of {title} is missing"
            files.problems.append(f"{problem}: {counts}")
        for name in names:
            if name in entries:
                _look_at(root, _join(folder, name), entries[name], files)
    files.problems += _absent_folders(root, absent, class_of)
    return files


def _look_at(root: Path, path: str, entry: os.DirEntry[str], files: _Files) -> None:
    if entry.is_symlink():
        target, parent = Path(entry.path).resolve(), path.rpartition("/")[0]
        homes = {"": root.resolve(), parent: Path(entry.path).parent.resolve()}
        start = next((start for start, home in homes.items() if target.is_relative_to(home)), None)
        if start is None:
            files.problems.append(
                f"'{path}' is a link out of the image folder, to '{target}': put the image there"
            )
            return
        files.targets[path] = _join(start, target.relative_to(homes[start]).as_posix())
    if entry.is_file():
        files.paths.append(path)
    elif entry.is_symlink():
        files.problems.append(f"'{path}' is a link that leads to no file: put the image there")
    else:
        files.problems.append(f"'{path}' is a folder or a device, not an image: replace it")


def _absent_folders(
    root: Path, absent: Mapping[str, list[str]], class_of: Mapping[str, str]
) -> list[str]:
    """Return a line for each missing folder; those in a missing folder count with it."""
    images: dict[str, list[str]] = defaultdict(list)
    for folder, names in absent.items():
        images[_topmost_missing(root, folder)] += [_join(folder, name) for name in names]
    problems = []
    for top, paths in list(images.items())[:_MAX_LINES]:
        title = _title(top, {class_of[path] for path in paths})
        problems.append(f"{title} is missing: expected {len(paths)} images, found 0")
    if rest := list(images)[_MAX_LINES:]:
        lost = sum(len(images[top]) for top in rest)
        problems.append(
            f"{len(rest)} more folders are missing, the first is '{rest[0]}': "
            f"expected {lost} images, found 0"
        )
    return problems


def _topmost_missing(root: Path, folder: str) -> str:
    parent = folder.rpartition("/")[0]
    while parent and not (root / parent).is_dir():
        folder, parent = parent, parent.rpartition("/")[0]
    return folder


def _title(folder: str, classes: set[str]) -> str:
    if not folder:
        return "the image folder"
    one_class = len(classes) == 1 and "" not in classes
    return f"class folder '{folder}'" if one_class else f"folder '{folder}'"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def decode_all(
    root: Path, paths: Sequence[str], *, workers: int, on_progress: OnProgress | None = None
) -> list[tuple[str, str]]:
    """Decode files; return the path of each that is no complete image, and the reason.

    Args:
        root: Folder that the paths are below.
        paths: Existing files.
        workers: Number of processes.
        on_progress: Called with files done and total files.

    Raises:
        BadData: A process died.
    """
    if not paths:
        return []
    # Spawned processes share nothing with this one, whatever threads or libraries it has running.
    context = multiprocessing.get_context("spawn")
    decode = partial(_decode_problem, os.fspath(root))
    try:
        with ProcessPoolExecutor(min(workers, len(paths)), mp_context=context) as pool:
            return _collect(paths, pool.map(decode, paths, chunksize=_CHUNK), on_progress)
    except BrokenProcessPool:
        raise BadData(
            f"a process that decoded images of '{root}' died, of lack of memory or of a hostile "
            "image: try fewer workers"
        ) from None


def _read_heads(
    root: Path, paths: Sequence[str], on_progress: OnProgress | None
) -> list[tuple[str, str]]:
    """Read the first bytes of files; return those that are no images, and their kind."""
    with ThreadPool(_THREADS) as pool:
        kinds = pool.imap(partial(_other_kind, os.fspath(root)), paths, chunksize=_CHUNK)
        return _collect(paths, kinds, on_progress)


def _collect(
    paths: Sequence[str], problems: Iterable[str], on_progress: OnProgress | None
) -> list[tuple[str, str]]:
    corrupt = []
    for done, (path, problem) in enumerate(zip(paths, problems, strict=True), start=1):
        if problem:
            corrupt.append((path, problem))
        if on_progress is not None and (done % _CHUNK == 0 or done == len(paths)):
            on_progress(done, len(paths))
    return corrupt


def _other_kind(root: str, path: str) -> str:
    """Return what a file is by its first bytes; empty if an image, whatever its suffix."""
    try:
        with open(f"{root}/{path}", "rb", buffering=0) as file:  # noqa: PTH123 faster than Path
            head = file.read(_HEAD)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if _IMAGE.match(head):
        return ""
    if not head:
        return "an empty file"
    for pattern, kind in _OTHERS:
        if pattern.search(head):
            return kind
    return f"no image (it starts with {head[:12]!r})"


def _decode_problem(root: str, path: str) -> str:
    """Return why the stages could not decode an image; empty if they can."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    from pd_core.data.loading.decode import MOST_BYTES, decode
    from pd_core.models.portable.pictures import reason

    ImageFile.LOAD_TRUNCATED_IMAGES = False
    file = Path(root, path)
    try:
        if file.stat().st_size > MOST_BYTES:
            return "far larger than a photo"
        with warnings.catch_warnings(action="ignore"):  # of odd metadata, which does not matter
            decode(file.read_bytes())
    except UnidentifiedImageError:
        return _other_kind(root, path) or "no image that can be decoded"
    except Image.DecompressionBombError:
        return "a decompression bomb: far more pixels than a photo has"
    except Exception as error:  # decoders raise anything on corrupt input, struct.error for one
        return f"damaged ({reason(error)})"
    return ""


def _grouped(corrupt: list[tuple[str, str]]) -> list[str]:
    """Return one line per kind of file that is no image."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, kind in corrupt:
        kinds.setdefault(kind.partition(" (")[0], []).append((path, kind))
    return [
        f"{_several([path for path, _ in files])} is {files[0][1]}: replace it"
        for files in kinds.values()
    ]


def _several(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return f"'{paths[0]}'"
    return f"each of {len(paths)} images, the first of which is '{paths[0]}',"
