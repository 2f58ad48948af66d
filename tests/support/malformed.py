"""Uploads that no service should take, from a seeded generator.

None of them is by chance a picture: what PIL can read is left out.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1_000_000
MOST_BYTES = 200_000
MOST_PICTURES = 8

_MAGIC = (b"%PDF-1.7\n", b"PK\x03\x04", b"\x7fELF", b"MZ", b"<svg/>", b"%!PS-Adobe-3.0\n", b"RIFF")


@dataclass(frozen=True)
class Upload:
    """A request, as the bytes that are sent.

    Attributes:
        kind: what is wrong with it.
        body: what is sent behind the head.
        path: where to.
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
        for kind in _KINDS:
            upload = kind(rng)
            if not _is_picture(upload.body) and made < count:
                made += 1
                yield upload


def _is_picture(data: bytes) -> bool:
    """Say whether PIL makes a picture within the limits of it."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            small = image.width * image.height <= MOST_PIXELS
            square = max(image.size) <= 100 * min(image.size)
            if small and square:
                image.load()
            return small and square
    except Exception:
        return False


# Pictures


def _picture(rng: random.Random, kind: str | None = None, mode: str | None = None) -> bytes:
    kind = kind or rng.choice(FORMATS)
    mode = mode or rng.choice(["RGB", "L"])
    size = (rng.randrange(16, 80), rng.randrange(16, 80))
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    image = Image.frombytes(mode, size, rng.randbytes(channels * size[0] * size[1]))
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def _truncated(rng: random.Random) -> Upload:
    data = _picture(rng)
    return Upload("truncated", data[: rng.randrange(1, len(data) * 6 // 10)])


def _truncated_cmyk(rng: random.Random) -> Upload:
    data = _picture(rng, rng.choice(["JPEG", "TIFF"]), "CMYK")
    return Upload("truncated CMYK", data[: len(data) // 2])


def _truncated_animation(rng: random.Random) -> Upload:
    frames = [Image.frombytes("L", (40, 40), rng.randbytes(1600)) for _ in range(3)]
    file = io.BytesIO()
    frames[0].save(file, format=rng.choice(["GIF", "WEBP"]), save_all=True, append_images=frames)
    return Upload("truncated animation", file.getvalue()[: rng.randrange(20, 900)])


def _rotten_exif(rng: random.Random) -> Upload:
    exif = b"Exif\0\0" + rng.randbytes(rng.randrange(4, 400))
    block = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    data = _picture(rng, "JPEG")
    return Upload("rotten EXIF", data[:2] + block + data[2 : len(data) // 3])


def _scrambled(rng: random.Random) -> Upload:
    data = bytearray(_picture(rng, rng.choice(["PNG", "WEBP", "GIF"])))
    for _ in range(60):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return Upload("scrambled", bytes(data))


def _another_type(rng: random.Random) -> Upload:
    return Upload("another type", rng.choice(_MAGIC) + rng.randbytes(rng.randrange(2000)))


def _another_picture(rng: random.Random) -> Upload:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, format=rng.choice(["ICO", "EPS", "TGA", "PDF"]))
    return Upload("a format that is not taken", file.getvalue())


def _noise(rng: random.Random) -> Upload:
    return Upload("noise", rng.randbytes(rng.randrange(1, 5000)))


def _empty(rng: random.Random) -> Upload:
    kind = rng.choice(["image/png", "application/json", "multipart/form-data; boundary=x", ""])
    return Upload("empty", b"", rng.choice(["/predict", "/predict/batch"]), {"Content-Type": kind})


def _polyglot(rng: random.Random) -> Upload:
    first = rng.choice([b"<html><script>alert(1)</script>", b"#!/bin/sh\n", b"GIF89a/*", *_MAGIC])
    return Upload("polyglot", first + _picture(rng))


def _png(width: int, height: int, pixels: bytes, *, crc: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes, wrong: int = 0) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data) ^ wrong)
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packed = zlib.compress(pixels, 9)
    parts = [chunk(b"IHDR", head, crc), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _bomb(rng: random.Random) -> Upload:
    side = rng.randrange(1001, 9000)
    return Upload("bomb", _png(side, side, bytes(side * (side // 8 + 2))))


def _thin_bomb(rng: random.Random) -> Upload:
    length = rng.randrange(200_000, 900_000)  # few pixels, until the short side is resized
    if rng.random() < 0.5:
        return Upload("thin bomb", _png(1, length, bytes(2 * length)))
    return Upload("thin bomb", _png(length, 1, bytes(length // 8 + 2)))


def _huge(rng: random.Random) -> Upload:
    side = rng.randrange(10_000, 2**31 - 1)
    data = rng.choice(
        [
            _png(side, side, bytes(100)),
            b"P6 %d %d 255\n" % (side, side) + bytes(100),
            b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf0\0\0" + bytes(60),
            b"BM" + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, side, side, 1, 24) + bytes(64),
        ]
    )
    return Upload("huge dimensions", data)


def _no_dimensions(rng: random.Random) -> Upload:
    data = rng.choice(
        [
            _png(0, 0, b""),
            _png(0, rng.randrange(1, 99), b""),
            b"P6 0 %d 255\n" % rng.randrange(9),
            b"P6 -5 7 255\n" + bytes(99),
            b"BM" + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, -3, 0, 1, 24) + bytes(64),
        ]
    )
    return Upload("no dimensions", data)


def _wrong_sum(rng: random.Random) -> Upload:
    return Upload("wrong checksum", _png(32, 32, bytes(160), crc=rng.randrange(1, 2**32)))


def _zip_bomb(rng: random.Random) -> Upload:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(rng.randrange(10**6, 10**7)))
    return Upload("zip bomb", file.getvalue(), headers={"Content-Type": "image/png"})


def _packed_body(rng: random.Random) -> Upload:
    data = zlib.compress(bytes(rng.randrange(10**6, 10**7)), wbits=31)
    return Upload("packed body", data, headers={"Content-Encoding": "gzip"})


def _large(rng: random.Random) -> Upload:
    return Upload("large", rng.randbytes(8) + bytes(MOST_BYTES + rng.randrange(10**6)))


# Forms and JSON


def _part(name: str, data: bytes, boundary: str = "x", extra: str = "") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n{extra}'
    return head.encode() + b"\r\n" + data + b"\r\n"


def _form(rng: random.Random) -> Upload:
    good = _picture(rng, "PNG")
    end = b"--x--\r\n"
    body = rng.choice(
        [
            _part("file", good)[: rng.randrange(10, 90)],  # within its head
            _part("file", good, "y") + end,
            _part("picture", good) + end,
            _part("file", good[:50]) + end,
            _part("file", b"") + end,
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n' + end,
            b"--x\r\nContent-Disposition: form-data\r\n\r\n" + good + b"\r\n" + end,
            b"--x\r\nContent-Dispo" + rng.randbytes(40) + b"\r\n\r\n" + good + b"\r\n" + end,
            b"--x" + rng.randbytes(100),
            _part("file", good) + _part("file", good) + end,
            _part("file", good, extra="X: " + "y" * 70_000 + "\r\n")[:40_000],
        ]
    )
    return Upload("form", body, headers={"Content-Type": "multipart/form-data; boundary=x"})


def _boundary(rng: random.Random) -> Upload:
    kind = rng.choice(["", ";", "; boundary=", "; boundary", f"; boundary={'z' * 5000}", '; bou="'])
    headers = {"Content-Type": f"multipart/form-data{kind}"}
    return Upload("boundary", _part("file", _picture(rng, "PNG")), headers=headers)


def _form_batch(rng: random.Random) -> Upload:
    good = _picture(rng, "PNG")
    parts = rng.choice(
        [
            _part("files", good) + _part("files", rng.randbytes(50)),
            _part("files", good) * (MOST_PICTURES + 1),
            _part("file", good),
            _part("files", good[: len(good) // 2]) * 3,
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return Upload("form of many", parts + b"--x--\r\n", "/predict/batch", headers)


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
    return Upload("JSON", data, "/predict/batch", {"Content-Type": "application/json"})


def _wrong_kind(rng: random.Random) -> Upload:
    kind = rng.choice(["text/html", "application/xml", "video/mp4", "x", "\xe4/\xf6", "image"])
    return Upload("wrong content type", rng.randbytes(50), headers={"Content-Type": kind})


def _query(rng: random.Random) -> Upload:
    top = rng.choice(["0", "-1", "x", "1e3", "", "%00", "9" * 5000, "\u0663".encode().hex()])
    return Upload("query", rng.randbytes(20), f"/predict?top={top}")


# HTTP itself


def _length(rng: random.Random) -> Upload:
    data = _picture(rng, "PNG")
    given = rng.choice(["-1", "abc", "1, 2", "", str(10**18), "0x10", str(len(data) // 2), "+5"])
    return Upload("length", data[: len(data) // 2], headers={"Content-Length": given})


def _short(rng: random.Random) -> Upload:
    data = _picture(rng, "PNG")
    headers = {"Content-Length": str(len(data))}
    return Upload("less than announced", data[: len(data) // 2], headers=headers)


def _chunks(rng: random.Random) -> Upload:
    body = rng.choice(
        [b"zz\r\nab\r\n", b"-5\r\nhello\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nab"]
    )
    return Upload("chunks", body, headers={"Transfer-Encoding": "chunked"})


_KINDS: tuple[Callable[[random.Random], Upload], ...] = (
    *(_truncated, _truncated_cmyk, _truncated_animation, _rotten_exif, _scrambled),
    *(_another_type, _another_picture, _noise, _empty, _polyglot),
    *(_bomb, _thin_bomb, _huge, _no_dimensions, _wrong_sum, _zip_bomb, _packed_body, _large),
    *(_form, _boundary, _form_batch, _json, _wrong_kind, _query, _length, _short, _chunks),
)
