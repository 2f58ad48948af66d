"""Download a file: resumable, verified, from the first of several addresses that serves it.

The partial file is `<name>.part`; `<name>.part.json` holds the address and the version that it is
of. It is renamed once it is complete and its checksum is right, so a file under its final name is
always complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.core.atomic import check_space
from pd_core.core.errors import BadData, PdError
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.sources import Address

if TYPE_CHECKING:
    from requests import Response


_BLOCK = 2**20
_HTML = "the server sent an HTML page instead of the file"
_HTML_STARTS = (b"<!doctype html", b"<html")
_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")
_TIMEOUT = (15, 60)  # seconds: to connect, and between two blocks
_LONGEST_WAIT = 60  # seconds before a retry, even if the server asks for more
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # status codes worth a retry


class Interrupted(Exception):
    """A broken transfer; the partial file stays, and a retry may resume it."""


class Refused(Exception):
    """An address that cannot serve the file; a retry would not help."""


@dataclass(frozen=True)
class Stream:
    """Bytes of a remote file.

    Attributes:
        start: Position of the first byte: the requested one, or 0 to start over.
        total: Size of the complete file in bytes; None if the server does not announce it.
        validator: HTTP validator (ETag or date) of this version of the file; may be empty.
        blocks: The bytes.
    """

    start: int
    total: int | None
    validator: str
    blocks: Iterator[bytes]


Opener = Callable[[int, str], Stream]
"""Open a remote file at a position, if its version still has the given validator."""


@dataclass(frozen=True)
class Retries:
    """Retry policy of a download, and the largest file that it accepts."""

    attempts: int = 5  # per address, without progress
    backoff: float = 1.0  # seconds before the second attempt; doubled before each further one
    max_bytes: int = 200 * 2**30  # far above every file of the table


RETRIES = Retries()


def download(
    addresses: Sequence[Address],
    target: Path,
    *,
    retries: Retries = RETRIES,
    on_progress: OnProgress | None = None,
) -> Address:
    """Download a file from the first address that serves it; return the address.

    Args:
        addresses: Candidates, best first; that of a partial file goes before them.
        target: Path of the complete, verified file.
        retries: Retry policy for each address.
        on_progress: Called with bytes done and total bytes (0 if unknown).

    Raises:
        BadData: No address served the file; the message has each with its reason.
        PdError: The disk is full or cannot be written.
    """
    part = Part(target)
    reasons = []
    for address in sorted(addresses, key=lambda address: address.url != part.source):
        open_at = partial(_open_url, address.url, retries)
        try:
            part.receive(open_at, address.url, address.checksum, retries, on_progress)
        except (Interrupted, Refused) as error:
            reasons.append(f"{address.url}: {error}")
        else:
            return address
    raise BadData(
        f"could not download '{target.name}': {'; '.join(reasons)}; try again later, or put the "
        f"file at '{target}' by hand"
    )


class Part:
    """A partial file, as an earlier run left it.

    Attributes:
        file: Path of the partial file.
        source: Address that it comes from; empty if there is none.
        validator: HTTP validator of its version.
    """

    def __init__(self, target: Path) -> None:
        """Load the state of the partial file of `target`, if any."""
        self.file = target.with_name(f"{target.name}.part")
        self._target = target
        self._state = target.with_name(f"{target.name}.part.json")
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            self.source, self.validator = str(state["source"]), str(state["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            self.source = self.validator = ""

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def begin(self, source: str, validator: str) -> None:
        """Start over with a version of the file."""
        self.discard()
        self._state.write_text(json.dumps({"source": source, "validator": validator}))
        self.source, self.validator = source, validator

    def discard(self) -> None:
        """Delete the partial file and its state."""
        self.file.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.source = self.validator = ""

    def receive(
        self,
        open_at: Opener,
        source: str,
        checksum: str,
        retries: Retries = RETRIES,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Receive the rest of the file, verify it, and rename it to the target.

        Args:
            open_at: Opens the remote file.
            source: Its address; a partial file of another one is discarded.
            checksum: Expected checksum, such as `md5:...`; empty if none is known.
            retries: Retry policy.
            on_progress: Called with bytes done and total bytes (0 if unknown).

        Raises:
            Interrupted: The transfer broke too often.
            Refused: The file is not there, or is another one.
            PdError: The disk is full or cannot be written.
        """
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.source != source:
                self.discard()
            failures = largest = 0
            while True:
                try:
                    self._receive_once(open_at, source, retries.max_bytes, on_progress)
                    break
                except Interrupted:
                    failures = 1 if self.size > largest else failures + 1
                    largest = max(largest, self.size)
                    if failures >= retries.attempts:
                        raise
                    time.sleep(retries.backoff * 2 ** (failures - 1))
            if checksum and (actual := digest(self.file, checksum)) != checksum:
                self.discard()
                raise Refused(f"checksum is {actual}, expected {checksum}")
            self.file.replace(self._target)
            self._state.unlink(missing_ok=True)

    def _receive_once(
        self, open_at: Opener, source: str, max_bytes: int, on_progress: OnProgress | None
    ) -> None:
        stream = open_at(self.size if self.validator else 0, self.validator)
        if stream.start == 0:
            self.begin(source, stream.validator)
        done, total = stream.start, stream.total or 0
        if total > max_bytes:
            raise Refused(f"it has {total} bytes, more than the limit of {max_bytes}")
        check_space(self.file.parent, total - done, f"'{self._target.name}'")
        with self.file.open("ab") as file:
            for block in stream.blocks:
                done += len(block)
                if done > max_bytes:
                    raise Refused(f"it has more than the limit of {max_bytes} bytes")
                file.write(block)
                if on_progress is not None:
                    on_progress(done, total)
        if total and done != total:
            raise Interrupted(f"ended after {done} of {total} bytes")


def digest(file: Path, like: str) -> str:
    """Return a file's checksum `md5:...` or `sha256:...`, of the kind that `like` begins with."""
    kind = like.partition(":")[0]
    with file.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def has_checksum(file: Path, checksums: Iterable[str]) -> bool:
    """True if a file has one of the checksums."""
    return any(digest(file, checksum) == checksum for checksum in checksums)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSErrors into a PdError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise PdError(
            f"cannot write '{path}': {error.strerror or error}; make room, or choose another place "
            "with --root"
        ) from None


def _open_url(url: str, retries: Retries, start: int, validator: str) -> Stream:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    headers = {"Accept-Encoding": "identity"}  # a .tar.gz is to arrive as it is stored
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    retry = Retry(
        retries.attempts - 1, backoff_factor=retries.backoff, status_forcelist=_TRANSIENT,
        raise_on_status=False, retry_after_max=_LONGEST_WAIT,
    )  # fmt: skip
    with requests.Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        try:
            response = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
        except requests.RequestException as error:
            raise Refused(_reason(error)) from None
    stream = _as_stream(response, start, validator)
    if stream is None:
        response.close()
        return _open_url(url, retries, 0, "")
    return stream


def _as_stream(response: Response, start: int, validator: str) -> Stream | None:
    """Interpret a response; None if the download cannot be resumed and has to start over."""
    status, headers = response.status_code, response.headers
    if status == 416 and start:  # nothing follows `start`: the file is complete, or another one
        complete = headers.get("Content-Range") == f"bytes */{start}"
        return Stream(start, start, validator, iter(())) if complete else None
    if status != 200 and not (status == 206 and start):
        raise Refused(f"status {status}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise Refused(_HTML)
    tag = headers.get("ETag", "")
    weak = not tag or tag.startswith("W/")  # a weak one is not allowed in `If-Range`
    current = headers.get("Last-Modified", "") if weak else tag
    if status == 200:
        size = headers.get("Content-Length", "")
        return Stream(0, int(size) if size.isdigit() else None, current, _blocks(response, 0))
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or int(match["start"]) != start or current != validator:
        return None
    total = None if match["total"] == "*" else int(match["total"])
    return Stream(start, total, current, _blocks(response, start))


def _blocks(response: Response, start: int) -> Iterator[bytes]:
    import urllib3

    try:
        for number, block in enumerate(response.raw.stream(_BLOCK, decode_content=False)):
            if start == number == 0 and block.lstrip()[:14].lower().startswith(_HTML_STARTS):
                raise Refused(_HTML)
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise Interrupted(_reason(error)) from None
    finally:
        response.close()


def _reason(error: Exception) -> str:
    """Return the innermost reason, without the objects that libraries print around it."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
