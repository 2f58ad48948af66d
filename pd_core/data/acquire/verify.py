"""Check a data set on disk: its lists, folders and image files; all findings at once."""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path

from pd_core.core.errors import BadData, PdError
from pd_core.data.acquire import presence
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
from pd_core.data.loading.splits import Items, Splits

OnProgress = Callable[[int, int], None]
Finding = tuple[str, str]  # a path, and what its file is instead of a picture: "an HTML page"

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


def identify(head: bytes) -> str:
    """Say what a file is by its first bytes.

    Returns:
        A noun, such as "an HTML page"; nothing if it is a picture, whatever its suffix says.
    """
    if _PICTURE.match(head):
        return ""
    if not head:
        return "an empty file"
    for pattern, what in _OTHERS:
        if pattern.search(head):
            return what
    return f"no picture (it starts with {head[:12]!r})"


def read_heads(
    root: Path, paths: Sequence[str], *, on_progress: OnProgress | None = None
) -> list[Finding]:
    """Find files that are no pictures by their first bytes.

    Args:
        root: Where the paths start.
        paths: Existing files.
        on_progress: Gets the number of files looked at so far, and of all.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(_heads, repeat(os.fspath(root)), _chunks(paths))
        return _collect(results, len(paths), on_progress)


def decode_all(
    root: Path, paths: Sequence[str], *, workers: int, on_progress: OnProgress | None = None
) -> list[Finding]:
    """Find files that are no whole pictures by decoding all of them.

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
            results = pool.map(partial(_decoded, os.fspath(root)), chunks)
            return _collect(results, len(paths), on_progress)
    except BrokenProcessPool:
        raise BadData(
            f"a process that decoded pictures of '{root}' died, of lack of memory or of a hostile "
            "picture: try fewer workers"
        ) from None


def _chunks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))


def _collect(
    results: Iterator[tuple[int, list[Finding]]], total: int, on_progress: OnProgress | None
) -> list[Finding]:
    findings: list[Finding] = []
    done = 0
    for count, found in results:
        findings += found
        done += count
        if on_progress is not None:
            on_progress(done, total)
    return findings


def _heads(root: str, paths: Sequence[str]) -> tuple[int, list[Finding]]:
    found = ((path, identify_file(f"{root}/{path}")) for path in paths)
    return len(paths), [(path, what) for path, what in found if what]


def identify_file(path: str) -> str:
    """Say what a file is, as `identify` does; one that cannot be read is "unreadable"."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 a million times, so without Path
            return identify(file.read(_HEAD))
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _decoded(root: str, paths: Sequence[str]) -> tuple[int, list[Finding]]:
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata: the picture is what counts
        found = [(path, _decode(f"{root}/{path}")) for path in paths]
    return len(paths), [(path, what) for path, what in found if what]


def _decode(path: str) -> str:
    """Say why the stages could not decode a picture; nothing if they can."""
    from PIL import Image, UnidentifiedImageError

    from pd_core.data.loading.decode import MOST_BYTES, decode
    from pd_core.models.portable.pictures import reason

    try:
        if os.stat(path).st_size > MOST_BYTES:  # noqa: PTH116 a million times, so without Path
            return "far larger than a photo"
        decode(Path(path).read_bytes())
    except UnidentifiedImageError:
        return identify_file(path) or "no picture that can be decoded"
    except Image.DecompressionBombError:
        return "a decompression bomb: far more pixels than a photo has"
    except Exception as error:  # damage makes decoders raise anything, struct.error for one
        return f"damaged ({reason(error)})"
    return ""


# Layouts whose class folders are the labels, wherever there is no split file.
_BY_FOLDER = (
    Layout.CLASS_FOLDERS,
    Layout.IMAGENET,
    Layout.IMAGENET_TEST,
    Layout.IMAGENET_NUMBERED,
)
_TITLES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        name: The data set.
        road: What its lists come from.
        counts: Found classes and pictures: `classes`, `train`, `val`, `test`; empty if the lists
            could not be read.
        problems: What is wrong, one line each.
    """

    name: str
    road: Road
    counts: Mapping[str, int]
    problems: tuple[str, ...]

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
    class_of = {item.path: item.name for _, items in _lists(splits) for item in items}
    found = presence.find(pictures, class_of)
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
        problems += presence.compare_folders(
            image_root(spec, root),
            part,
            [name.removeprefix(start) for name in known if name.startswith(start)],
            num_classes=spec.num_classes,
            ignored=spec.ignored,
        )
    return problems


def _lists(splits: Splits) -> tuple[tuple[str, Items], ...]:
    return (("train", splits.train), ("val", splits.val), ("test", splits.test))


def _counts(splits: Splits) -> dict[str, int]:
    sizes = {name: len(items) for name, items in _lists(splits)}
    return {"classes": len(splits.class_names), **sizes}


def _count_problems(spec: DatasetSpec, splits: Splits, road: Road) -> list[str]:
    problem = count_problem(spec, splits, road)
    if not problem:
        return []
    by_folder = road is Road.ANNOTATIONS and spec.layout in _BY_FOLDER
    return [problem + (_odd_folder(splits) if by_folder else "")]


def _odd_folder(splits: Splits) -> str:
    """Name the class folder that has more or fewer pictures than all others, if there is one."""
    folders = Counter(item.path.rpartition("/")[0] for _, items in _lists(splits) for item in items)
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
    for name, items in _lists(splits):
        seen = {item.name for item in items}
        absent = [label for label in splits.class_names if seen and label not in seen]
        if absent:
            who = f"class '{absent[0]}' has"
            if len(absent) > 1:
                who = f"{len(absent)} classes, '{absent[0]}' the first, have"
            problems.append(f"{who} no {_TITLES[name]} picture: complete the list")
    return problems


def _shared(splits: Splits, real: Mapping[str, str]) -> list[str]:
    """Find pictures that are in two lists by way of a link; the reader refuses all others."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, items in _lists(splits):
        mine = {real.get(item.path, item.path): item.path for item in items}
        for file, path in mine.items():
            if owner.setdefault(file, name) != name:
                shared.setdefault((owner[file], name), []).append(path)
    return [
        f"{_several(paths)} is in both {_TITLES[one]} and {_TITLES[other]}: keep it in one list"
        for (one, other), paths in shared.items()
    ]


def _look_into(
    root: Path, files: list[str], processes: int, on_progress: OnProgress | None
) -> list[str]:
    """Read the first bytes of pictures and, with processes to do it, decode them."""
    if processes:
        found = decode_all(root, files, workers=processes, on_progress=on_progress)
        return [f"'{path}' is {what}: replace it" for path, what in found]
    return _grouped(read_heads(root, files, on_progress=on_progress))


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
