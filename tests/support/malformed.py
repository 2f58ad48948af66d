"""Malformed uploads from a seeded generator; those that PIL can read by chance are left out."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1_000_000
MOST_BYTES = 200_000
MOST_PICTURES = 8

_MAGIC = (b"%PDF-1.7\n", b"PK\x03\x04", b"\x7fELF", b"MZ", b"<svg/>", b"%!PS-Adobe-3.0\n", b"RIFF")


@dataclass(frozen=True)
class Upload:
    """A malformed request.

    Attributes:
        kind: of the defect.
        body: sent after the head.
        path: of the request.
        headers: all but `Host`; `Content-Length` is the body's unless it is given.
    """

    kind: str
    body: bytes
    path: str = "/predict"
    headers: dict[str, str] = field(default_factory=dict)

    def sent(self) -> bytes:
        """Return the whole request."""
        headers = {"Host": "x", "Content-Type": "application/octet-stream", **self.headers}
        if not {"Content-Length", "Transfer-Encoding"} & set(headers):
            headers["Content-Length"] = str(len(self.body))
        lines = [f"POST {self.path} HTTP/1.1", *(f"{key}: {headers[key]}" for key in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def uploads(seed: int, count: int) -> Iterator[Upload]:
    """Yield malformed uploads of all kinds in turn, the same ones for the same seed."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        for kind in (*_IMAGES, *_REQUESTS):
            upload = _REQUESTS[kind](rng) if kind in _REQUESTS else Upload("", _IMAGES[kind](rng))
            upload = replace(upload, kind=kind)
            if not _is_picture(upload.body) and made < count:
                made += 1
                yield upload


def _is_picture(data: bytes) -> bool:
    """Return True if PIL reads it as an image within the limits."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            small = image.width * image.height <= MOST_PIXELS
            square = max(image.size) <= 100 * min(image.size)
            if small and square:
                image.load()
            return small and square
    except Exception:
        return False


# Images


def _picture(rng: random.Random, kind: str | None = None, mode: str | None = None) -> bytes:
    kind = kind or rng.choice(FORMATS)
    mode = mode or rng.choice(["RGB", "L"])
    size = (rng.randrange(16, 80), rng.randrange(16, 80))
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    return _encoded(Image.frombytes(mode, size, rng.randbytes(channels * size[0] * size[1])), kind)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data) * 6 // 10)]


def _animation(rng: random.Random) -> bytes:
    frames = [Image.frombytes("L", (40, 40), rng.randbytes(1600)) for _ in range(3)]
    return _encoded(frames[0], rng.choice(["GIF", "WEBP"]), save_all=True, append_images=frames)


def _rotten_exif(rng: random.Random) -> bytes:
    exif = b"Exif\0\0" + rng.randbytes(rng.randrange(4, 400))
    block = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    data = _picture(rng, "JPEG")
    return data[:2] + block + data[2 : len(data) // 3]


def _scrambled(rng: random.Random) -> bytes:
    data = bytearray(_picture(rng, rng.choice(["PNG", "WEBP", "GIF"])))
    for _ in range(60):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _png(width: int, height: int, pixels: bytes, *, crc: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes, wrong: int = 0) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data) ^ wrong)
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packed = zlib.compress(pixels, 9)
    parts = [chunk(b"IHDR", head, crc), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, width, height, 1, 24)
    return b"BM" + head + bytes(64)


def _bomb(rng: random.Random) -> bytes:
    side = rng.randrange(1001, 9000)
    return _png(side, side, bytes(side * (side // 8 + 2)))


def _thin_bomb(rng: random.Random) -> bytes:
    length = rng.randrange(200_000, 900_000)  # few pixels, until the short side is resized
    if rng.random() < 0.5:
        return _png(1, length, bytes(2 * length))
    return _png(length, 1, bytes(length // 8 + 2))


def _huge(rng: random.Random) -> bytes:
    side = rng.randrange(10_000, 2**31 - 1)
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf0\0\0" + bytes(60)
    ppm = b"P6 %d %d 255\n" % (side, side) + bytes(100)
    return rng.choice([_png(side, side, bytes(100)), ppm, gif, _bmp(side, side)])


def _no_dimensions(rng: random.Random) -> bytes:
    pngs = _png(0, 0, b""), _png(0, rng.randrange(1, 99), b"")
    ppms = b"P6 0 %d 255\n" % rng.randrange(9), b"P6 -5 7 255\n" + bytes(99)
    return rng.choice([*pngs, *ppms, _bmp(-3, 0)])


_IMAGES: dict[str, Callable[[random.Random], bytes]] = {
    "truncated": lambda rng: _cut(_picture(rng), rng),
    "truncated CMYK": lambda rng: _cut(_picture(rng, rng.choice(["JPEG", "TIFF"]), "CMYK"), rng),
    "truncated animation": lambda rng: _animation(rng)[: rng.randrange(20, 900)],
    "rotten EXIF": _rotten_exif,
    "scrambled": _scrambled,
    "another type": lambda rng: rng.choice(_MAGIC) + rng.randbytes(rng.randrange(2000)),
    "a format that is not taken": lambda rng: _encoded(
        Image.new("RGB", (32, 32), "red"), rng.choice(["ICO", "EPS", "TGA", "PDF"])
    ),
    "noise": lambda rng: rng.randbytes(rng.randrange(1, 5000)),
    "polyglot": lambda rng: (
        rng.choice([b"<html><script>alert(1)</script>", b"#!/bin/sh\n", b"GIF89a/*", *_MAGIC])
        + _picture(rng)
    ),
    "bomb": _bomb,
    "thin bomb": _thin_bomb,
    "huge dimensions": _huge,
    "no dimensions": _no_dimensions,
    "wrong checksum": lambda rng: _png(32, 32, bytes(160), crc=rng.randrange(1, 2**32)),
    "large": lambda rng: rng.randbytes(8) + bytes(MOST_BYTES + rng.randrange(10**6)),
}


# Requests

_END = b"--x--\r\n"


def _of_kind(body: bytes, kind: str, path: str = "/predict") -> Upload:
    return Upload("", body, path, {"Content-Type": kind})


def _part(name: str, data: bytes, boundary: str = "x", extra: str = "") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n{extra}'
    return head.encode() + b"\r\n" + data + b"\r\n"


def _empty(rng: random.Random) -> Upload:
    kind = rng.choice(["image/png", "application/json", "multipart/form-data; boundary=x", ""])
    return _of_kind(b"", kind, rng.choice(["/predict", "/predict/batch"]))


def _zip_bomb(rng: random.Random) -> Upload:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(rng.randrange(10**6, 10**7)))
    return _of_kind(file.getvalue(), "image/png")


def _packed(rng: random.Random) -> Upload:
    data = zlib.compress(bytes(rng.randrange(10**6, 10**7)), wbits=31)
    return Upload("", data, headers={"Content-Encoding": "gzip"})


def _form(rng: random.Random) -> Upload:
    good = _picture(rng, "PNG")
    bodies = [
        _part("file", good)[: rng.randrange(10, 90)],  # within its head
        _part("file", good, "y") + _END,
        _part("picture", good) + _END,
        _part("file", good[:50]) + _END,
        _part("file", b"") + _END,
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n' + _END,
        b"--x\r\nContent-Disposition: form-data\r\n\r\n" + good + b"\r\n" + _END,
        b"--x\r\nContent-Dispo" + rng.randbytes(40) + b"\r\n\r\n" + good + b"\r\n" + _END,
        b"--x" + rng.randbytes(100),
        _part("file", good) + _part("file", good) + _END,
        _part("file", good, extra="X: " + "y" * 70_000 + "\r\n")[:40_000],
    ]
    return _of_kind(rng.choice(bodies), "multipart/form-data; boundary=x")


def _boundary(rng: random.Random) -> Upload:
    kind = rng.choice(["", ";", "; boundary=", "; boundary", f"; boundary={'z' * 5000}", '; bou="'])
    return _of_kind(_part("file", _picture(rng, "PNG")), f"multipart/form-data{kind}")


def _form_batch(rng: random.Random) -> Upload:
    good = _picture(rng, "PNG")
    bodies = [
        _part("files", good) + _part("files", rng.randbytes(50)),
        _part("files", good) * (MOST_PICTURES + 1),
        _part("file", good),
        _part("files", good[: len(good) // 2]) * 3,
    ]
    kind = "multipart/form-data; boundary=x"
    return _of_kind(rng.choice(bodies) + _END, kind, "/predict/batch")


def _json(rng: random.Random) -> Upload:
    good = base64.b64encode(_picture(rng, "PNG")).decode()
    body: bytes | object = rng.choice(
        [
            b"[" * 100_000,
            b'{"images":' * 20_000,
            b'{"images": ["' + rng.randbytes(50),
            b"\xff\xfe" + rng.randbytes(20),
            json.dumps({"images": [good]}).encode()[:-2],
            b'{"images": [' + b"9" * 10_000 + b"]}",
            *(b"null", b"NaN", b"1", b'""', b"{}", b"[]", b"{'images': []}"),
            *({"images": good}, {"images": {"0": good}}, {"images": [1]}, {"images": [[good]]}),
            *({"images": [None]}, {"images": []}, {"pictures": [good]}, {"images": ["?" + good]}),
            *({"images": ["/etc/passwd"]}, {"images": [good[:40]]}, {"images": ["\ud800"]}),
            {"images": [good, base64.b64encode(rng.randbytes(40)).decode()]},
            {"images": [good] * (MOST_PICTURES + 1)},
            {"images": ["data:image/png;base64," + good[:31]]},
        ]
    )
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _of_kind(data, "application/json", "/predict/batch")


def _wrong_kind(rng: random.Random) -> Upload:
    kind = rng.choice(["text/html", "application/xml", "video/mp4", "x", "\xe4/\xf6", "image"])
    return _of_kind(rng.randbytes(50), kind)


def _query(rng: random.Random) -> Upload:
    top = rng.choice(["0", "-1", "x", "1e3", "", "%00", "9" * 5000, "\u0663".encode().hex()])
    return Upload("", rng.randbytes(20), f"/predict?top={top}")


def _length(rng: random.Random) -> Upload:
    data = _picture(rng, "PNG")
    given = rng.choice(["-1", "abc", "1, 2", "", str(10**18), "0x10", str(len(data) // 2), "+5"])
    return Upload("", data[: len(data) // 2], headers={"Content-Length": given})


def _short(rng: random.Random) -> Upload:
    data = _picture(rng, "PNG")
    return Upload("", data[: len(data) // 2], headers={"Content-Length": str(len(data))})


def _chunks(rng: random.Random) -> Upload:
    bodies = [b"zz\r\nab\r\n", b"-5\r\nhello\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nab"]
    return Upload("", rng.choice(bodies), headers={"Transfer-Encoding": "chunked"})


_REQUESTS: dict[str, Callable[[random.Random], Upload]] = {
    "empty": _empty, "zip bomb": _zip_bomb, "packed body": _packed, "form": _form,
    "boundary": _boundary, "form of many": _form_batch, "JSON": _json,
    "wrong content type": _wrong_kind, "query": _query, "length": _length,
    "less than announced": _short, "chunks": _chunks,
}  # fmt: skip
