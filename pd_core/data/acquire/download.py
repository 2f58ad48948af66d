"""Download a file: resumed, checked, from the first of several addresses that has it.

A download grows in `<name>.part`, with what is needed to go on in `<name>.part.json`; it gets its
name when it is whole and its checksum is right. So a file that has its name is finished.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.core.errors import BadData, PdError
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.sources import Address

if TYPE_CHECKING:
    from requests import Response


_BLOCK = 2**20
_HTML = "it answered with an HTML page in place of the file"
_HTML_STARTS = (b"<!doctype html", b"<html")
_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")
_SECONDS = (15, 60)  # to connect, and between two pieces of an answer
_LATER = frozenset((408, 425, 429, 500, 502, 503, 504))  # statuses that may be gone in a moment


class Interrupted(Exception):
    """The transfer broke off; what came so far is kept, another attempt may go on from there."""


class Refused(Exception):
    """This address cannot give the file; another attempt would not help."""


@dataclass(frozen=True)
class Stream:
    """An answer to a request for the bytes of a file from some position on."""

    start: int  # position of the first byte that comes: what was asked for, or 0 to start anew
    total: int | None  # size of the whole file in bytes, if it is said
    validator: str  # what marks this version of the file; empty if nothing does
    blocks: Iterator[bytes]


Opener = Callable[[int, str], Stream]
"""Asks for the bytes from a position on, of the version that a validator marks."""


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried, and what is too much."""

    attempts: int = 5  # at an address, while none gets further than those before
    pause: float = 1.0  # seconds before the second attempt; doubled before each further one
    most_bytes: int = 200 * 2**30  # no file of the table comes near it


PATIENCE = Patience()


def download(
    addresses: Sequence[Address],
    target: Path,
    *,
    patience: Patience = PATIENCE,
    on_progress: OnProgress | None = None,
) -> Address:
    """Download a file from the first address that has it; return the address.

    Args:
        addresses: Where it can be had, best first.
        target: Where it goes. Nothing else than the whole, checked file gets this name.
        patience: With each address.
        on_progress: Called with bytes done and bytes in all (0 if unknown).

    Raises:
        BadData: No address gave the file; the message has each with its reason.
        PdError: The disk is full or cannot be written.
    """
    part = Part(target)
    reasons = []
    for address in sorted(addresses, key=lambda address: address.url != part.source):
        open_at = partial(_open_http, address.url)
        try:
            part.receive(open_at, address.url, address.checksum, patience, on_progress)
        except (Interrupted, Refused) as error:
            reasons.append(f"{address.url}: {error}")
        else:
            return address
    raise BadData(
        f"could not download '{target.name}': {'; '.join(reasons)}; try again later, or put the "
        f"file at '{target}' by hand"
    )


class Part:
    """A download that is not finished.

    Attributes:
        target: The name that it gets when it is.
        file: Where it grows.
    """

    def __init__(self, target: Path) -> None:
        """Look for what an earlier run left."""
        self.target = target
        self.file = target.with_name(f"{target.name}.part")
        self._state = target.with_name(f"{target.name}.part.json")
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            self.source, self.validator = str(state["source"]), str(state["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            self.source = self.validator = ""

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def begin(self, source: str, validator: str) -> None:
        """Forget what is here, and note what comes."""
        self.file.unlink(missing_ok=True)
        self._state.write_text(json.dumps({"source": source, "validator": validator}))
        self.source, self.validator = source, validator

    def discard(self) -> None:
        """Forget what is here."""
        self.file.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.source = self.validator = ""

    def receive(
        self,
        open_at: Opener,
        source: str,
        checksum: str,
        patience: Patience = PATIENCE,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Bring the file here, going on from what is here already.

        Args:
            open_at: Asks for the bytes.
            source: What is asked; an unfinished download from elsewhere is not gone on with.
            checksum: What the file must have; empty if it is not known.
            patience: With the source.
            on_progress: Called with bytes done and bytes in all (0 if unknown).

        Raises:
            Interrupted: The connection broke too often.
            Refused: The file is not there, or is not what it should be.
            PdError: The disk is full or cannot be written.
        """
        if self.source != source:
            with writing(self.file):
                self.discard()
        failures = most = 0
        while True:
            try:
                with writing(self.file):
                    self.target.parent.mkdir(parents=True, exist_ok=True)
                    self._receive_once(open_at, source, patience.most_bytes, on_progress)
                    break
            except Interrupted:
                failures = 1 if self.size > most else failures + 1
                most = max(most, self.size)
                if failures >= patience.attempts:
                    raise
                time.sleep(patience.pause * 2 ** (failures - 1))
        if checksum and (found := digest(self.file, checksum)) != checksum:
            self.discard()
            raise Refused(f"checksum {found} where {checksum} belongs")
        with writing(self.file):
            self.file.replace(self.target)
            self._state.unlink(missing_ok=True)

    def _receive_once(
        self, open_at: Opener, source: str, most_bytes: int, on_progress: OnProgress | None
    ) -> None:
        stream = open_at(self.size if self.validator else 0, self.validator)
        if stream.start == 0:
            self.begin(source, stream.validator)
        done, total = stream.start, stream.total
        if max(done, total or 0) > most_bytes:
            raise Refused(f"it has {total} bytes, more than the {most_bytes} that are allowed")
        _require_space(self.file.parent, (total or 0) - done)
        with self.file.open("ab") as file:
            for block in stream.blocks:
                done += len(block)
                if done > most_bytes:
                    raise Refused(f"it has more than the {most_bytes} bytes that are allowed")
                file.write(block)
                if on_progress is not None:
                    on_progress(done, total or 0)
        if total is not None and done < total:
            raise Interrupted(f"broke off after {done} of {total} bytes")
        if total is not None and done > total:
            self.discard()
            raise Refused(f"sent {done} bytes where it announced {total}")


def digest(file: Path, like: str) -> str:
    """Return a file's checksum, of the kind of another checksum: `md5:...` or `sha256:...`."""
    kind = like.partition(":")[0]
    with file.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PdError(
            f"no room in '{folder}': {needed} bytes are still to come, {free} are free; make room "
            "or choose another place with --root"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line, a PdError, which file or folder the block could not write, and why."""
    try:
        yield
    except OSError as error:
        raise PdError(
            f"cannot write '{path}': {error.strerror or error}; make room, or choose another place "
            "with --root"
        ) from None


def _open_http(url: str, start: int, validator: str) -> Stream:
    """Ask a server for a file."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # a .tar.gz is wanted as it lies on the server
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        answer = requests.get(url, headers=headers, stream=True, timeout=_SECONDS)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Interrupted(_reason(error)) from None
    except requests.RequestException as error:
        raise Refused(_reason(error)) from None
    stream = _understand(answer, start, validator)
    if stream is None:
        answer.close()
        return _open_http(url, 0, "")
    return stream


def _understand(answer: Response, start: int, validator: str) -> Stream | None:
    """Make sense of an answer; None if it is of no use for going on, so ask for the whole file."""
    status, found = answer.status_code, _validator(answer)
    if status in _LATER:
        raise Interrupted(f"status {status}")
    if status == 416 and start:
        # Nothing comes after `start`: either all is here already, or the file has changed.
        whole = answer.headers.get("Content-Range") == f"bytes */{start}"
        return Stream(start, start, validator, iter(())) if whole else None
    if status != 200 and not (status == 206 and start):
        raise Refused(f"status {status}")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused(_HTML)
    if status == 200:
        size = answer.headers.get("Content-Length", "")
        return Stream(0, int(size) if size.isdigit() else None, found, _blocks(answer, 0))
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or int(match["start"]) != start or found != validator:
        return None
    total = None if match["total"] == "*" else int(match["total"])
    return Stream(start, total, found, _blocks(answer, start))


def _blocks(answer: Response, start: int) -> Iterator[bytes]:
    import urllib3

    try:
        for number, block in enumerate(answer.raw.stream(_BLOCK, decode_content=False)):
            if start == number == 0 and block.lstrip()[:14].lower().startswith(_HTML_STARTS):
                raise Refused(_HTML)
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise Interrupted(_reason(error)) from None
    finally:
        answer.close()


def _validator(answer: Response) -> str:
    """Return what marks this version of the file in `If-Range`, which weak tags cannot."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    """Return the innermost reason, without the objects that libraries print around it."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
