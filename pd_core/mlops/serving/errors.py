"""Limits of the service, and the HTTP errors that refuse what is beyond them."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException


@dataclass(frozen=True)
class Limits:
    """Bounds of a request, and of all requests together.

    Attributes:
        batch: pictures that go through the model together.
        waiting: pictures that may wait for their answer; whoever comes then is sent away.
        pictures: in one request.
        picture_bytes: of one uploaded picture.
        batch_bytes: of a request with many pictures.
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


BAD, TIMEOUT, LARGE, UNSUPPORTED, BUSY, LATE = 400, 408, 413, 415, 503, 504

_CLOSE = {"Connection": "close"}


def bad(reason: str) -> HTTPException:
    """Refuse what cannot be understood."""
    return HTTPException(BAD, " ".join(reason.split()))


def unsupported(given: str) -> HTTPException:
    """Refuse a body of an unknown kind."""
    return HTTPException(
        UNSUPPORTED, f"'{given[:60]}' is not taken; send a picture, or multipart/form-data"
    )


def too_large(most: int, what: str = "the upload") -> HTTPException:
    """Refuse an upload; whatever of it is still on its way is not read."""
    return HTTPException(LARGE, f"{what} has more than {most} bytes", headers=_CLOSE)


def too_slow(seconds: float) -> HTTPException:
    """Give up on a request that does not arrive."""
    return HTTPException(
        TIMEOUT, f"the upload did not arrive within {seconds:g} seconds", headers=_CLOSE
    )


def busy() -> HTTPException:
    """Send a client away until others are served."""
    return HTTPException(
        BUSY, "too many pictures are waiting; try again", headers={"Retry-After": "1"}
    )


def gone() -> HTTPException:
    """Say that there is nobody to answer just now."""
    return HTTPException(
        BUSY, "the model's process has ended and is started again", headers={"Retry-After": "5"}
    )


def late(seconds: float) -> HTTPException:
    """Give up on an answer."""
    return HTTPException(
        LATE, f"no answer within {seconds:g} seconds; try again", headers={"Retry-After": "1"}
    )
