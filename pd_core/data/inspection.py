"""Picture files looked at one by one: by their first bytes, or by decoding them."""

from __future__ import annotations

import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import repeat
from pathlib import Path

from pd_core.errors import BadData

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

    from pd_core.data.decode import MOST_BYTES, decode
    from pd_core.portable.pictures import reason

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
