"""Requests to the service: their limits, their images, and the HTTP errors that refuse them.

Bytes, images and seconds are limited. Nothing is written to disk: the limits keep it small enough
for memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

_MULTIPART, _JSON = "multipart/form-data", "application/json"
_RAW = ("", "application/octet-stream")
_MOST_FIELDS = 8
_DRAINED = 4  # times the limit
_DRAIN_SECONDS = 5.0
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Limits:
    """Bounds of a request, and of all requests together.

    Attributes:
        batch: images that go through the model together.
        waiting: images that may wait for their answer; further requests are sent away.
        pictures: in one request.
        picture_bytes: of one uploaded image.
        batch_bytes: of a request with many images.
        held_bytes: of all uploads that are held at a time.
        upload_seconds: until a request has arrived.
        answer_seconds: from then until it is answered.
    """

    batch: int = 32
    waiting: int = 256
    pictures: int = 64
    picture_bytes: int = 20 * 2**20
    batch_bytes: int = 64 * 2**20
    held_bytes: int = 512 * 2**20
    upload_seconds: float = 30.0
    answer_seconds: float = 30.0


def bad(reason: str) -> HTTPException:
    """Refuse what cannot be understood."""
    return HTTPException(400, " ".join(reason.split()))


def gone() -> HTTPException:
    """Send a client away until the model's process is there again."""
    reason = "the model's process has ended and is started again"
    return HTTPException(503, reason, headers={"Retry-After": "5"})


def _busy() -> HTTPException:
    reason = "too many pictures are waiting; try again"
    return HTTPException(503, reason, headers={"Retry-After": "1"})


def _unsupported(given: str) -> HTTPException:
    return HTTPException(
        415, f"'{given[:60]}' is not taken; send a picture, or multipart/form-data"
    )


def _too_large(most: int, what: str = "the upload") -> HTTPException:
    """Refuse an upload; whatever of it is still on its way is not read."""
    return HTTPException(413, f"{what} has more than {most} bytes", headers=_CLOSE)


class Room:
    """Bytes of uploads that the service holds at a time, and images that wait."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self._limits = limits
        self.requests = self.pictures = self.bytes = 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Admit a request; what it holds is given back when the block ends.

        Raises:
            HTTPException: 503, as many requests are in as pictures may wait.
        """
        if self.requests >= self._limits.waiting:
            raise _busy()
        self.requests += 1
        held = Held(self)
        try:
            yield held
        finally:
            self.requests -= 1
            self.pictures -= held.pictures
            self.bytes -= held.bytes

    def has(self, pictures: int, size: int) -> bool:
        """Whether so much more may come in; a request that comes alone always may."""
        waiting = self.pictures + pictures <= self._limits.waiting or not self.pictures
        return waiting and self.bytes + size <= self._limits.held_bytes


class Held:
    """One request's share of the room."""

    def __init__(self, room: Room) -> None:
        """Start with nothing."""
        self._room = room
        self.pictures = self.bytes = 0

    def take(self, *, pictures: int = 0, size: int = 0) -> None:
        """Hold more.

        Raises:
            HTTPException: 503, there is no room for it.
        """
        if not self._room.has(pictures, size):
            raise _busy()
        self.pictures += pictures
        self.bytes += size
        self._room.pictures += pictures
        self._room.bytes += size


async def one_picture(request: Request, limits: Limits, held: Held) -> bytes:
    """Read an image's bytes: the body itself, or the field `file` of a form.

    Raises:
        HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = _kind(request)
    async with _within(limits.upload_seconds):
        chunks = _chunks(request, limits.picture_bytes, held)
        if kind == _MULTIPART:
            files = await _files(request, chunks, "file", most=1)
            if not files:
                raise bad("the form has no file in its field 'file'")
            data = files[0]
        elif kind in _RAW or kind.startswith("image/"):
            data = b"".join([chunk async for chunk in chunks])
        else:
            raise _unsupported(kind)
    held.take(pictures=1)
    return data


async def many_pictures(request: Request, limits: Limits, held: Held) -> list[bytes]:
    """Read the images of a batch: fields `files` of a form, or JSON `{"images": [base64, ...]}`.

    Raises:
        HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = _kind(request)
    async with _within(limits.upload_seconds):
        chunks = _chunks(request, limits.batch_bytes, held)
        if kind == _MULTIPART:
            pictures = await _files(request, chunks, "files", most=limits.pictures)
        elif kind == _JSON:
            body = b"".join([chunk async for chunk in chunks])
            pictures = await asyncio.to_thread(_images, body, limits.pictures)
        else:
            raise _unsupported(kind)
    if not pictures:
        raise bad("no pictures; send at least one, in the field 'files' or 'images'")
    for place, picture in enumerate(pictures):
        if len(picture) > limits.picture_bytes:
            raise _too_large(limits.picture_bytes, f"picture {place}")
    held.take(pictures=len(pictures))
    return pictures


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        detail = f"the upload did not arrive within {seconds:g} seconds"
        raise HTTPException(408, detail, headers=_CLOSE) from None


async def _chunks(request: Request, most: int, held: Held) -> AsyncGenerator[bytes, None]:
    """Yield a body's bytes as they come, up to a limit."""
    declared = request.headers.get("content-length", "0")
    taken = 0
    stream = request.stream()
    if int(declared) <= most:
        async for chunk in stream:
            taken += len(chunk)
            if taken > most:
                break
            held.take(size=len(chunk))
            yield chunk
        else:
            return
    if "expect" not in request.headers:
        await _drain(stream, _DRAINED * most)
    raise _too_large(most)


async def _drain(stream: AsyncGenerator[bytes, None], most: int) -> None:
    """Throw away what a client still sends, since it reads no answer before it has sent all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in stream:
                most -= len(chunk)
                if most < 0:
                    return


async def _files(
    request: Request, chunks: AsyncGenerator[bytes, None], field: str, *, most: int
) -> list[bytes]:
    parser = MultiPartParser(request.headers, chunks, max_files=most, max_fields=_MOST_FIELDS)
    parser.spool_max_size = 0  # never to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad(f"the form cannot be read: {error.message}") from None
    try:
        files = [file for file in form.getlist(field) if isinstance(file, UploadFile)]
        return [await file.read() for file in files]
    finally:
        await form.close()


def _images(body: bytes, most: int) -> list[bytes]:
    """Decode `{"images": [base64, ...]}`."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise bad("the body is not JSON") from None
    texts = content.get("images") if isinstance(content, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad('send {"images": [base64, ...]}')
    if len(texts) > most:
        raise bad(f"{len(texts)} pictures; send at most {most}")
    return [_bytes(text, place) for place, text in enumerate(texts)]


def _bytes(text: str, place: int) -> bytes:
    """Decode base64, as it is or as a data URL."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise bad(f"picture {place} is not base64") from None
