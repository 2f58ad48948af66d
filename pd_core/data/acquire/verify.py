"""Check data sets on disk: counts, class folders, every listed image; all problems at once."""

from __future__ import annotations

import difflib
import multiprocessing
import os
import posixpath
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from pd_core.core.errors import BadData, PdError
from pd_core.core.hooks import OnProgress
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.annotations import class_folders
from pd_core.data.catalog.catalogue import DatasetSpec, Layout
from pd_core.data.catalog.fingerprint import Fingerprint
from pd_core.data.catalog.readers import (
    Road,
    count_problem,
    image_root,
    label_road,
    read_splits,
    sources,
)
from pd_core.data.loading.splits import Splits, is_picture

Finding = tuple[str, str]  # a path, and what its file is instead of a picture: "an HTML page"

_MOST_LINES = 10  # of one kind; more are one line
_HEAD = 512  # bytes; an HTML page may begin with comments
_READERS = 8  # threads: reading lets others run
_CHUNK = 64  # files a thread or process takes at a time

_PICTURE = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|BM.{4}\0\0\0\0"
    rb"|RIFF.{4}WEBP"
    rb"|II[*+]\0|MM\0[*+]"  # TIFF
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

# Layouts whose class folders are the labels, wherever there is no split file.
_BY_FOLDER = (
    Layout.CLASS_FOLDERS,
    Layout.IMAGENET,
    Layout.IMAGENET_TEST,
    Layout.IMAGENET_NUMBERED,
)


@dataclass(frozen=True)
class Verdict:
    """What a check found."""

    name: str  # of the data set
    road: Road  # what its lists come from
    counts: Mapping[str, int]
    """Found `classes`, and images in `train`, `val`, `test`; empty if the lists are unreadable."""
    problems: tuple[str, ...]  # what is wrong, one line each

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    spec: DatasetSpec,
    root: Path,
    *,
    full: bool = False,
    workers: int | None = None,
    recorded: Fingerprint | None = None,
    on_progress: OnProgress | None = None,
) -> Verdict:
    """Check a data set against its row: counts, class folders, every listed picture.

    The first bytes of every picture are read, so that a web page saved in its place is found;
    only `full` finds a picture that breaks off.

    Args:
        spec: The data set.
        root: Folder that holds all data sets. Embedded ones do not need it.
        full: Whether to decode every picture.
        workers: Processes that decode; None for one a core.
        recorded: What an embedded data set should be; others are not compared.
        on_progress: Gets the number of pictures looked at so far, and of all.
    """
    processes = (workers or os.cpu_count() or 1) if full else 0
    if spec.layout is Layout.EMBEDDED:
        counts, problems = _embedded(spec, recorded)
    else:
        counts, problems = _on_disk(spec, root, processes, on_progress)
    return Verdict(spec.name, label_road(spec, root), counts, tuple(map(_printable, problems)))


def state_of(spec: DatasetSpec, root: Path) -> str:
    """Say what is there of a data set, without looking at its pictures."""
    if spec.layout is Layout.EMBEDDED:
        return "embedded"
    if not (root / spec.folder).is_dir():
        return "absent"
    if not all(folder.is_dir() for folder in _picture_folders(spec, root)):
        return "incomplete: no image folder"
    if not all(source.exists() for source in sources(spec, root)):
        return "incomplete: no labels"
    return "there"


def _embedded(spec: DatasetSpec, recorded: Fingerprint | None) -> tuple[dict[str, int], list[str]]:
    """Build the data set anew and compare it with what it was when its fingerprint was made."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        splits = read_splits(spec, root)
        problems = []
        if recorded is not None:
            try:
                fingerprint.check(recorded, [image_root(spec, root)], root, name=spec.name)
            except PdError as error:
                problems.append(str(error))
    return _counts(splits), problems


def _on_disk(
    spec: DatasetSpec, root: Path, processes: int, on_progress: OnProgress | None
) -> tuple[dict[str, int], list[str]]:
    road = label_road(spec, root)
    problems = _folder_problems(spec, root) if road is Road.ANNOTATIONS else []
    try:
        # Counts are compared below, where pictures are looked at as well.
        splits = read_splits(replace(spec, train=None, val=None, test=None), root)
    except PdError as error:
        return {}, problems or [str(error)]
    pictures = image_root(spec, root)
    class_of = {item.path: item.name for item in chain(*splits.lists.values())}
    found = _find(pictures, class_of)
    problems += _count_problems(spec, splits, road)
    problems += _empty_classes(splits)
    problems += _shared(splits, found.real)
    problems += found.problems
    problems += _look_into(pictures, found.files, processes, on_progress)
    return _counts(splits), problems


def _picture_folders(spec: DatasetSpec, root: Path) -> list[Path]:
    return [image_root(spec, root) / part for part in spec.parts or (".",)]


def _folder_problems(spec: DatasetSpec, root: Path) -> list[str]:
    """Compare class folders where they are the labels; the reader would stop at the first."""
    if spec.layout not in _BY_FOLDER or not all(map(Path.is_dir, _picture_folders(spec, root))):
        return []
    known = class_folders(spec)
    problems = []
    for part in spec.parts or ("",):
        start = f"{part}/" if part else ""
        problems += _compare_folders(
            image_root(spec, root),
            part,
            [name.removeprefix(start) for name in known if name.startswith(start)],
            num_classes=spec.num_classes,
            ignored=spec.ignored,
        )
    return problems


def _counts(splits: Splits) -> dict[str, int]:
    sizes = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
    return {"classes": len(splits.class_names), **sizes}


def _count_problems(spec: DatasetSpec, splits: Splits, road: Road) -> list[str]:
    problem = count_problem(spec, splits, road)
    if not problem:
        return []
    by_folder = road is Road.ANNOTATIONS and spec.layout in _BY_FOLDER
    return [problem + (_odd_folder(splits) if by_folder else "")]


def _odd_folder(splits: Splits) -> str:
    """Name the class folder that has more or fewer pictures than all others, if there is one."""
    items = chain(*splits.lists.values())
    folders = Counter(item.path.rpartition("/")[0] for item in items)
    sizes = Counter(folders.values())
    (usual, _), *others = sizes.most_common()
    match others:
        case [(odd, 1)] if len(folders) > 2:
            name = next(folder for folder, size in folders.items() if size == odd)
            return f"; class folder '{name}' has {odd}, all others {usual}"
        case _:
            return ""


def _empty_classes(splits: Splits) -> list[str]:
    """Name classes that a list has no picture of; a list without any is the row's business."""
    problems = []
    for name, items in splits.lists.items():
        seen = {item.name for item in items}
        absent = [label for label in splits.class_names if seen and label not in seen]
        if absent:
            who = f"class '{absent[0]}' has"
            if len(absent) > 1:
                who = f"{len(absent)} classes, '{absent[0]}' the first, have"
            problems.append(f"{who} no {name} picture: complete the list")
    return problems


def _shared(splits: Splits, real: Mapping[str, str]) -> list[str]:
    """Find pictures that are in two lists by way of a link; the reader refuses all others."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, items in splits.lists.items():
        mine = {real.get(item.path, item.path): item.path for item in items}
        for file, path in mine.items():
            if owner.setdefault(file, name) != name:
                shared.setdefault((owner[file], name), []).append(path)
    return [
        f"{_several(paths)} is in both {one} and {other}: keep it in one list"
        for (one, other), paths in shared.items()
    ]


def _look_into(
    root: Path, files: list[str], processes: int, on_progress: OnProgress | None
) -> list[str]:
    """Read the first bytes of pictures and, with processes to do it, decode them."""
    if processes:
        found = decode_all(root, files, workers=processes, on_progress=on_progress)
        return [f"'{path}' is {what}: replace it" for path, what in found]
    return _grouped(_read_heads(root, files, on_progress))


def _grouped(findings: list[Finding]) -> list[str]:
    """One line for each kind of thing that is no picture."""
    kinds: dict[str, list[Finding]] = {}
    for path, what in findings:
        kinds.setdefault(what.partition(" (")[0], []).append((path, what))
    return [
        f"{_several([path for path, _ in mine])} is {mine[0][1]}: replace it"
        for mine in kinds.values()
    ]


def _several(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return f"'{paths[0]}'"
    return f"each of {len(paths)} pictures, the first of which is '{paths[0]}',"


def _printable(text: str) -> str:
    """Keep a problem on one line, whatever is in a file's name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class _Presence:
    """What was found of a list of images."""

    files: list[str] = field(default_factory=list)  # regular ones, in the order listed
    real: dict[str, str] = field(default_factory=dict)  # of links: where to, below the image folder
    problems: list[str] = field(default_factory=list)


def _find(root: Path, class_of: Mapping[str, str]) -> _Presence:
    """Look for images, folder by folder: a million are too many to ask for one by one.

    The data root, the image folder and folders below may be links; an image may be a link to a
    file of its own folder or of the image folder. `class_of` has the class of each by its path.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for path in class_of:
        folder, _, name = path.rpartition("/")
        wanted[folder].append(name)
    found = _Presence()
    absent: dict[str, list[str]] = {}
    for folder, names in wanted.items():
        entries = _entries(root / folder)
        if entries is None:
            absent[folder] = names
            continue
        there = [name for name in names if name in entries]
        if len(there) < len(names):
            gone = [name for name in names if name not in entries]
            what = _title(folder, {class_of[_join(folder, name)] for name in names})
            found.problems.append(_missing(what, folder, gone, len(names), empty=not entries))
        for name in there:
            _look_at(root, _join(folder, name), entries[name], found)
    found.problems += _absent_folders(root, absent, class_of)
    return found


def _compare_folders(
    root: Path, part: str, known: Sequence[str], *, num_classes: int, ignored: Collection[str] = ()
) -> list[str]:
    """Compare class folders with the known ones: one line for each missing, renamed or unknown.

    Args:
        root: The image folder.
        part: What holds the class folders, below it; empty if it does so itself.
        known: Names of class folders that may be there.
        num_classes: How many of them have to be there.
        ignored: Folders that are no classes.
    """
    folder = root / part
    entries = (_entries(folder) or {}).values()
    there = {
        entry.name: _has_pictures(Path(entry.path))
        for entry in entries
        if not entry.name.startswith(".") and entry.name not in ignored and entry.is_dir()
    }
    missing = [name for name in known if name not in there]
    found = sum(full for name, full in there.items() if name in known)
    counts = f"expected {num_classes} class folders with pictures, found {found}"
    problems = []
    for name in sorted(name for name, full in there.items() if full and name not in known):
        close = difflib.get_close_matches(name, missing, n=1)
        was = close[0] if close else missing[0] if len(missing) == 1 else ""
        if was:
            missing.remove(was)
            problems.append(f"{_renamed(_join(part, was), _join(part, name))}: {counts}")
        else:
            problems.append(f"class folder '{_join(part, name)}' is unknown: rename or remove it")
    for name in known:
        if not there.get(name, True):
            problems.append(f"class folder '{_join(part, name)}' has no pictures: {counts}")
    if len(known) == num_classes:
        problems += _summed(
            [f"class folder '{_join(part, name)}' is missing" for name in missing], counts
        )
    return problems


def _summed(lines: list[str], counts: str) -> list[str]:
    """Put counts after every line, or all lines into one if they are many."""
    if len(lines) > _MOST_LINES:
        lines = [f"{lines[0]}, and so are {len(lines) - 1} more"]
    return [f"{line}: {counts}" for line in lines]


def _has_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)


def _renamed(was: str, now: str) -> str:
    return f"class folder '{was}' is missing (is '{now}' it, renamed?)"


def _entries(folder: Path) -> dict[str, os.DirEntry[str]] | None:
    """Return what a folder holds, by name; None if it is none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return None


def _look_at(root: Path, path: str, entry: os.DirEntry[str], found: _Presence) -> None:
    if entry.is_symlink():
        target = Path(entry.path).resolve()
        homes = (root.resolve(), Path(entry.path).parent.resolve())
        home = next((home for home in homes if target.is_relative_to(home)), None)
        if home is None:
            found.problems.append(
                f"'{path}' is a link out of the image folder, to '{target}': put the picture there"
            )
            return
        start = "" if home == homes[0] else path.rpartition("/")[0]
        found.real[path] = _join(start, target.relative_to(home).as_posix())
    if entry.is_file():
        found.files.append(path)
    elif entry.is_symlink():
        found.problems.append(f"'{path}' is a link that leads to no file: put the picture there")
    else:
        found.problems.append(f"'{path}' is a folder or a device, not a picture: replace it")


def _missing(what: str, folder: str, gone: list[str], expected: int, *, empty: bool) -> str:
    counts = f"expected {expected} pictures, found {expected - len(gone)}"
    if empty:
        return f"{what} is empty: {counts}"
    first = _join(folder, gone[0])
    if len(gone) == 1:
        return f"picture '{first}' of {what} is missing: {counts}"
    return f"{len(gone)} pictures of {what} are missing, the first is '{first}': {counts}"


def _absent_folders(
    root: Path, absent: Mapping[str, list[str]], class_of: Mapping[str, str]
) -> list[str]:
    """Say which folders are missing; those in a missing folder count with it."""
    pictures: dict[str, list[str]] = defaultdict(list)
    for folder, names in absent.items():
        pictures[_topmost_missing(root, folder)] += [_join(folder, name) for name in names]
    known = _with_parents(path.rpartition("/")[0] for path in class_of)
    problems = []
    tops = list(pictures)
    for top in tops[:_MOST_LINES]:
        what = _title(top, {class_of[path] for path in pictures[top]})
        guess = _guess(root, top, known)
        counts = f"expected {len(pictures[top])} pictures, found 0"
        problems.append(f"{what} is missing{guess}: {counts}")
    if len(tops) > _MOST_LINES:
        lost = sum(len(pictures[top]) for top in tops[_MOST_LINES:])
        problems.append(
            f"{len(tops) - _MOST_LINES} more folders are missing, the first is "
            f"'{tops[_MOST_LINES]}': expected {lost} pictures, found 0"
        )
    return problems


def _topmost_missing(root: Path, folder: str) -> str:
    parent = folder.rpartition("/")[0]
    while parent and not (root / parent).is_dir():
        folder, parent = parent, parent.rpartition("/")[0]
    return folder


def _guess(root: Path, folder: str, known: set[str]) -> str:
    """Name the folder that a missing one may have become: alike, or the only other of pictures."""
    parent, _, name = folder.rpartition("/")
    entries = _entries(root / parent) or {}
    strangers = sorted(
        entry.name
        for entry in entries.values()
        if not entry.name.startswith(".")
        and _join(parent, entry.name) not in known
        and entry.is_dir()
    )
    close = difflib.get_close_matches(name, strangers, n=1)
    if not close and len(strangers) == 1:
        close = [name for name in strangers if _has_pictures(root / parent / name)]
    return f" (is '{_join(parent, close[0])}' it, renamed?)" if close else ""


def _with_parents(folders: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for folder in folders:
        while folder and folder not in found:
            found.add(folder)
            folder = posixpath.dirname(folder)
    return found


def _title(folder: str, classes: set[str]) -> str:
    if not folder:
        return "the image folder"
    return f"class folder '{folder}'" if len(classes) == 1 else f"folder '{folder}'"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def decode_all(
    root: Path, paths: Sequence[str], *, workers: int, on_progress: OnProgress | None = None
) -> list[Finding]:
    """Find files that are no whole images by decoding all of them.

    Args:
        root: Where the paths start.
        paths: Existing files.
        workers: Processes that decode.
        on_progress: Gets the number of files decoded so far, and of all.

    Raises:
        BadData: A process died.
    """
    chunks = list(_chunks(paths))
    if not chunks:
        return []
    # Spawned processes share nothing with this one, whatever threads or libraries it has running.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
            results = pool.map(partial(_examine, _decode, os.fspath(root)), chunks)
            return _collect(results, len(paths), on_progress)
    except BrokenProcessPool:
        raise BadData(
            f"a process that decoded pictures of '{root}' died, of lack of memory or of a hostile "
            "picture: try fewer workers"
        ) from None


def _read_heads(root: Path, paths: Sequence[str], on_progress: OnProgress | None) -> list[Finding]:
    """Find files that are no images by their first bytes."""
    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(partial(_examine, _identify_file, os.fspath(root)), _chunks(paths))
        return _collect(results, len(paths), on_progress)


def _chunks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))


def _examine(
    look: Callable[[str], str], root: str, paths: Sequence[str]
) -> tuple[int, list[Finding]]:
    found = ((path, look(f"{root}/{path}")) for path in paths)
    return len(paths), [(path, what) for path, what in found if what]


def _collect(
    results: Iterable[tuple[int, list[Finding]]], total: int, on_progress: OnProgress | None
) -> list[Finding]:
    findings: list[Finding] = []
    done = 0
    for count, found in results:
        findings += found
        done += count
        if on_progress is not None:
            on_progress(done, total)
    return findings


def _identify(head: bytes) -> str:
    """Say what a file is by its first bytes; nothing if an image, whatever its suffix says."""
    if _PICTURE.match(head):
        return ""
    if not head:
        return "an empty file"
    for pattern, what in _OTHERS:
        if pattern.search(head):
            return what
    return f"no picture (it starts with {head[:12]!r})"


def _identify_file(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 a million times, so without Path
            return _identify(file.read(_HEAD))
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _decode(path: str) -> str:
    """Say why the stages could not decode an image; nothing if they can."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    from pd_core.data.loading.decode import MOST_BYTES, decode
    from pd_core.models.portable.pictures import reason

    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if os.stat(path).st_size > MOST_BYTES:  # noqa: PTH116 a million times, so without Path
            return "far larger than a photo"
        with warnings.catch_warnings(action="ignore"):  # of odd metadata: the image is what counts
            decode(Path(path).read_bytes())
    except UnidentifiedImageError:
        return _identify_file(path) or "no picture that can be decoded"
    except Image.DecompressionBombError:
        return "a decompression bomb: far more pixels than a photo has"
    except Exception as error:  # damage makes decoders raise anything, struct.error for one
        return f"damaged ({reason(error)})"
    return ""
