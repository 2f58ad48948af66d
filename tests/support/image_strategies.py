"""Images for schemathesis, whose schemas cannot tell them from other bytes."""

import base64
import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _encoded(mode: str, width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 1).save(file, kind)
    return file.getvalue()


_SIDES = st.integers(1, 300)
_IMAGES = st.builds(
    _encoded,
    mode=st.sampled_from(["L", "RGB"]),
    width=_SIDES,
    height=_SIDES,
    kind=st.sampled_from(["BMP", "GIF", "JPEG", "PNG", "WEBP"]),
)

schemathesis.openapi.format("binary", _IMAGES)
schemathesis.openapi.format("byte", _IMAGES.map(lambda image: base64.b64encode(image).decode()))
for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, _IMAGES)
