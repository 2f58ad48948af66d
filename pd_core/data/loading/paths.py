"""Names of files as lists and archives give them: which stay below, which are pictures.

Names are judged as text. A link that lies below the data root may lead anywhere: whoever can put
one there owns the data, and data sets are often linked to where there is room. Archives, which come
from elsewhere, may have no links at all.
"""

import posixpath
import re

PICTURES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Suffixes of pictures, in lower case."""
_SUFFIXES = tuple(PICTURES)

_PLAIN = re.compile(r"(?:\w[\w-]*/)*\w[\w.-]*")  # most paths; a hundred thousand are to be quick
# A backslash and a drive lead out on Windows only, but a list has to mean the same everywhere; a
# zero byte or half a character can be in no file's name.
_OUT = re.compile(r"^(?:/|.:)|(?:^|/)\.\.(?:/|$)|[\\\0\ud800-\udfff]", re.DOTALL)
_LOOSE = re.compile(r"(?:^|/)\.?(?:/|$)")  # a part of a path that is empty or a dot


def is_below(path: str) -> bool:
    """Whether a path with forward slashes stays in the folder that it starts from."""
    return bool(path) and not _OUT.search(path)


def clean_path(path: str) -> str | None:
    """Return a listed path without dots and doubled slashes; None if it is not below its start."""
    if _PLAIN.fullmatch(path):
        return path
    if not is_below(path):
        return None
    if _LOOSE.search(path):
        path = posixpath.normpath(path)
    return None if path == "." else path


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files are none."""
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)
