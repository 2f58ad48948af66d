"""How the service says no: a status, one line, and what the client should do then."""

from __future__ import annotations

from starlette.exceptions import HTTPException

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
