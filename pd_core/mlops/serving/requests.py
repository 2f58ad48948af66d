"""Uploads to the service: their limits, their images, and the HTTP errors that refuse them.

Nothing is written to disk: the limits on bytes, images and seconds keep uploads in memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

_MULTIPART, _JSON = "multipart/form-data", "application/json"
# curl --data-binary sends the last one, unless it is given another.
_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_GZIP = ("gzip", "x-gzip")
_PIECE = 2**16  # bytes that are decompressed at a time
_MAX_FIELDS = 1000  # of a form; unknown ones are ignored
_DRAIN_FACTOR = 4  # an upload that is too large is read to the end up to so many times the limit
_DRAIN_SECONDS = 5.0
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Limits:
    """Bounds of a request, and of all requests together.

    Attributes:
        batch: images classified together.
        waiting: images in the queue; further requests are refused.
        images: images of a request.
        image_bytes: bytes of an uploaded image.
        batch_bytes: bytes of a request with several images.
        held_bytes: bytes of all uploads at a time.
        upload_seconds: timeout of an upload.
        answer_seconds: timeout of a classification.
    """

    batch: int = 32
    waiting: int = 256
    images: int = 64
    image_bytes: int = 20 * 2**20
    batch_bytes: int = 64 * 2**20
    held_bytes: int = 512 * 2**20
    upload_seconds: float = 30.0
    answer_seconds: float = 30.0


def bad_request(reason: str) -> HTTPException:
    """Make the error for a malformed request."""
    return HTTPException(400, " ".join(reason.split()))


def unavailable(reason: str, *, retry_after: int) -> HTTPException:
    """Make the error for a request that may succeed after some seconds."""
    return HTTPException(503, reason, headers={"Retry-After": str(retry_after)})


def _busy() -> HTTPException:
    return unavailable("too many images are waiting; try again", retry_after=1)


def _unsupported(content_type: str, supported: str) -> HTTPException:
    reason = f"Content-Type '{content_type[:60]}' is not supported; send {supported}"
    return HTTPException(415, reason)


def _too_large(limit: int, name: str = "the upload") -> HTTPException:
    return HTTPException(413, f"{name} has more than {limit} bytes", headers=_CLOSE)


class Capacity:
    """Counters of the requests, images and bytes that the service holds."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self._limits = limits
        self.requests = self.images = self.bytes = 0

    @contextmanager
    def admit(self) -> Iterator[Reservation]:
        """Admit a request for the length of the block.

        Raises:
            HTTPException: 503, as many requests are in as images may wait.
        """
        if self.requests >= self._limits.waiting:
            raise _busy()
        self.requests += 1
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.requests -= 1
            self.images -= reservation.images
            self.bytes -= reservation.bytes

    def fits(self, images: int, size: int) -> bool:
        """Return True if so much more may come in; always if no image is waiting."""
        fits = self.images + images <= self._limits.waiting or not self.images
        return fits and self.bytes + size <= self._limits.held_bytes


class Reservation:
    """Share of one request in the capacity."""

    def __init__(self, capacity: Capacity) -> None:
        """Start with nothing."""
        self._capacity = capacity
        self.images = self.bytes = 0

    def take(self, *, images: int = 0, size: int = 0) -> None:
        """Add images and bytes.

        Raises:
            HTTPException: 503, they exceed the capacity.
        """
        if not self._capacity.fits(images, size):
            raise _busy()
        self.images += images
        self.bytes += size
        self._capacity.images += images
        self._capacity.bytes += size


async def read_image(request: Request, limits: Limits, reservation: Reservation) -> bytes:
    """Read an image's bytes: the body itself, or the field `file` of a form.

    Raises:
        HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = _content_type(request)
    async with _timeout(limits.upload_seconds):
        chunks = _chunks(request, limits.image_bytes, reservation)
        if kind == _MULTIPART:
            files = await _files(request, chunks, "file", limit=1)
            if not files:
                raise bad_request("the form has no file in its field 'file'")
            data = files[0]
        elif kind in _RAW or kind.startswith("image/"):
            data = b"".join([chunk async for chunk in chunks])
        else:
            raise _unsupported(kind, "image/png or another image, or multipart/form-data")
    reservation.take(images=1)
    return data


async def read_images(request: Request, limits: Limits, reservation: Reservation) -> list[bytes]:
    """Read the images of a batch: fields `files` of a form, or JSON `{"images": [base64, ...]}`.

    Raises:
        HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = _content_type(request)
    async with _timeout(limits.upload_seconds):
        chunks = _chunks(request, limits.batch_bytes, reservation)
        if kind == _MULTIPART:
            images = await _files(request, chunks, "files", limit=limits.images)
        elif kind == _JSON:
            body = b"".join([chunk async for chunk in chunks])
            images = await asyncio.to_thread(_images_of, body, limits.images)
        else:
            raise _unsupported(kind, "multipart/form-data or application/json")
    if not images:
        raise bad_request("no images; send at least one, in the field 'files' or 'images'")
    for index, image in enumerate(images):
        if len(image) > limits.image_bytes:
            raise _too_large(limits.image_bytes, f"image {index}")
    reservation.take(images=len(images))
    return images


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def _timeout(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        reason = f"the upload did not arrive within {seconds:g} seconds"
        raise HTTPException(408, reason, headers=_CLOSE) from None


async def _chunks(
    request: Request, limit: int, reservation: Reservation
) -> AsyncGenerator[bytes, None]:
    """Yield a body's bytes as they arrive, decompressed, up to a limit."""
    received = 0
    stream = request.stream()
    if int(request.headers.get("content-length", "0")) <= limit:
        async for chunk in _decoded(request, stream):
            received += len(chunk)
            if received > limit:
                break
            reservation.take(size=len(chunk))
            yield chunk
        else:
            return
    if "expect" not in request.headers:
        await _drain(stream, _DRAIN_FACTOR * limit)
    raise _too_large(limit)


def _decoded(request: Request, stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Undo the content encoding of a body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return stream
    if encoding in _GZIP:
        return _gunzip(stream)
    reason = f"Content-Encoding '{encoding[:60]}' is not supported; send gzip, or none"
    raise HTTPException(415, reason, headers={"Accept-Encoding": "gzip"})


async def _gunzip(stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Decompress in small pieces: a short body may contain a huge one."""
    decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    async for chunk in stream:
        more = True
        while more:
            try:
                piece = decoder.decompress(chunk, _PIECE)
            except zlib.error:
                raise bad_request("the body is not gzip, as its Content-Encoding says") from None
            yield piece
            chunk = decoder.unconsumed_tail
            more = bool(chunk) or len(piece) == _PIECE
            await asyncio.sleep(0)  # lets other requests in
        if decoder.unused_data:
            raise bad_request("bytes follow the end of the gzip body; send one gzip stream")
    if not decoder.eof:
        raise bad_request("the gzip body ends too early; send all of it")


async def _drain(stream: AsyncGenerator[bytes, None], limit: int) -> None:
    """Discard the rest of an upload: clients read the response after they have sent all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in stream:
                limit -= len(chunk)
                if limit < 0:
                    return


async def _files(
    request: Request, chunks: AsyncGenerator[bytes, None], field: str, *, limit: int
) -> list[bytes]:
    parser = MultiPartParser(request.headers, chunks, max_files=limit, max_fields=_MAX_FIELDS)
    parser.spool_max_size = 0  # never to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(f"the form cannot be read: {error.message}") from None
    try:
        files = [file for file in form.getlist(field) if isinstance(file, UploadFile)]
        return [await file.read() for file in files]
    finally:
        await form.close()


def _images_of(body: bytes, limit: int) -> list[bytes]:
    """Decode `{"images": [base64, ...]}`, where base64 may be a data URL."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request('the body is not JSON; send {"images": [base64, ...]}') from None
    texts = content.get("images") if isinstance(content, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_request('send {"images": [base64, ...]}')
    if len(texts) > limit:
        raise bad_request(f"{len(texts)} images; send at most {limit}")
    images = []
    for index, text in enumerate(texts):
        encoded = text.partition(",")[2] if text.startswith("data:") else text
        try:
            images.append(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise bad_request(f"image {index} is not base64") from None
    return images
