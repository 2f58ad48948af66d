"""Files that stages hand to each other: JSON, safetensors, and folders of them.

A reader sees the old content or the new one, never a half, and refuses content
that has been damaged since it was written. The same content gives the same
bytes: sorted keys, no times, no host names.

Writers raise `PdError` where the folder cannot be written. Readers are told
what the file is, and the remedy if it is absent or damaged, for the message.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadArtifact, missing

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
"""What the files beside it contain, as `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks."""

_CHECKSUM = "sha256"  # in the metadata of a safetensors file
_METADATA = "__metadata__"  # in the header of one


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with line feeds on every system."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON: sorted keys, two-space indent, a newline at the end.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON has not.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, *, what: str = "file", remedy: str = "run the stage before") -> Any:
    """Read a JSON file.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is not JSON.
    """
    content = _read_bytes(path, what, remedy)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"{what} '{path}' is not JSON ({error}); {remedy}") from None


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, in the order of their names, with a checksum.

    Args:
        path: the file.
        tensors: any shapes; copied to the CPU.
        metadata: strings that describe them, stored in the file's header.
    """
    header, data = _plain(tensors)
    header[_METADATA] |= metadata
    header[_METADATA][_CHECKSUM] = _content_hash(header, data)
    write_bytes(path, _encoded(header) + data)


def write_weights(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write named tensors as a bare safetensors file, as weights of a CLIP come."""
    header, data = _plain(tensors)
    write_bytes(path, _encoded(header) + data)


def read_tensors(
    path: Path, *, what: str = "file", remedy: str = "run the stage before"
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read what `write_tensors` wrote, onto the CPU.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is not a safetensors file, or its content is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = _read_bytes(path, what, remedy)
    try:
        tensors = load(content)  # checks sizes against shapes before it allocates
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError) as error:
        raise BadArtifact(f"{what} '{path}' is not safetensors ({error}); {remedy}") from None
    metadata: dict[str, str] = header.get(_METADATA) or {}
    recorded = metadata.pop(_CHECKSUM, None)
    if recorded != _content_hash(header, memoryview(content)[8 + size :]):
        raise BadArtifact(
            f"{what} '{path}' is damaged: its content is not what its checksum says; {remedy}"
        )
    return tensors, metadata


@contextmanager
def understood(path: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Say in one line that an artifact's content means nothing to the block that interprets it.

    Raises:
        BadArtifact: an entry is missing, or is none that can be.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact(f"{what} '{path}' is wrong at {error}; {remedy}") from None


def check_numbers(tensors: "Mapping[str, Tensor]", path: Path, *, what: str, remedy: str) -> None:
    """Make sure that a model is made of finite floating-point numbers, its counters apart.

    Raises:
        BadArtifact: a tensor is not.
    """
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):  # batch norm's
            continue
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise BadArtifact(
                f"{what} '{path}' has a tensor '{name}' that is not of finite floating-point"
                f" numbers; {remedy}"
            )


def write_sums(folder: Path) -> None:
    """Record the hashes of all files in a folder in its `SHA256SUMS`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    lines = [f"{file_hash(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_text(folder / SUMS, "".join(lines))


def check_sum(path: Path, *, what: str = "file", remedy: str) -> None:
    """Make sure that a file is what the `SHA256SUMS` beside it says.

    Raises:
        MissingFile: it, or `SHA256SUMS`, is not there.
        BadArtifact: it is not listed there, or its content is another.
    """
    sums = path.parent / SUMS
    found = file_hash(path, what=what, remedy=remedy)
    known = _read_bytes(sums, f"checksum of the {what}", remedy).splitlines()
    if f"{found}  {path.name}".encode() not in known:
        raise BadArtifact(f"{what} '{path}' is not what '{sums}' says; {remedy}")


def file_hash(path: Path, *, what: str = "file", remedy: str = "check the path") -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it cannot be read.
    """
    if not path.is_file():
        raise missing(what, path, remedy)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, what, remedy, error) from None


def _read_bytes(path: Path, what: str, remedy: str) -> bytes:
    if not path.is_file():
        raise missing(what, path, remedy)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, what, remedy, error) from None


def _unreadable(path: Path, what: str, remedy: str, error: OSError) -> BadArtifact:
    return BadArtifact(f"{what} '{path}' cannot be read ({error.strerror}); {remedy}")


def _plain(tensors: "Mapping[str, Tensor]") -> tuple[dict[str, Any], bytes]:
    """Return the header, without metadata, and the data of a safetensors file."""
    from safetensors.torch import save

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # Without an entry the library writes a header that is not JSON, if there are no tensors.
    content = save(plain, metadata={_CHECKSUM: ""})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return {**header, _METADATA: {}}, content[8 + size :]


def _encoded(header: Mapping[str, Any]) -> bytes:
    """Write a safetensors header with sorted keys.

    The library keeps the metadata in a hash map, whose order differs from run
    to run, so equal content would give unequal files.
    """
    text = _sorted_json(header)
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _content_hash(header: Mapping[str, Any], data: bytes | memoryview) -> str:
    """Hash what a safetensors file holds, its checksum apart."""
    digest = hashlib.sha256(_sorted_json(header))
    digest.update(data)
    return digest.hexdigest()


def _sorted_json(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
