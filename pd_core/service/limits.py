"""What the service takes on, and no more."""

from __future__ import annotations

from dataclasses import dataclass


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
