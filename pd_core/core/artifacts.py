"""Artifacts of stages: JSON and safetensors files, and checksums of folders.

Writes are atomic and reproducible (sorted keys, no times, no host names); corrupt content is
refused. Writers raise `PdError` if the folder cannot be written. Readers take a description of the
file and a remedy for their error messages.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.core.atomic import write_bytes
from pd_core.core.errors import BadArtifact, missing

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
"""Checksums of the files beside it, in the format of `sha256sum -c SHA256SUMS`."""

_CHECKSUM = "sha256"  # key in the metadata of a safetensors file
_METADATA = "__metadata__"  # key in its header


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON with sorted keys; raises ValueError for a NaN or an infinity."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, *, what: str = "file", remedy: str = "run the stage before") -> Any:
    """Read a JSON file.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it is not JSON.
    """
    content = _read_bytes(path, what, remedy)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"{what} '{path}' is not JSON ({error}); {remedy}") from None


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write named tensors and metadata as a safetensors file with a checksum."""
    header, data = _plain(tensors)
    header[_METADATA] |= metadata
    header[_METADATA][_CHECKSUM] = _content_hash(header, data)
    write_bytes(path, _encoded(header) + data)


def write_weights(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write named tensors as a safetensors file without metadata, like published weights."""
    header, data = _plain(tensors)
    write_bytes(path, _encoded(header) + data)


def read_tensors(
    path: Path, *, what: str = "file", remedy: str = "run the stage before"
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read tensors (onto the CPU) and metadata of a file written by `write_tensors`.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it is not a safetensors file, or its checksum does not match.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = _read_bytes(path, what, remedy)
    try:
        tensors = load(content)  # checks sizes against shapes before it allocates memory
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError) as error:
        raise BadArtifact(f"{what} '{path}' is not safetensors ({error}); {remedy}") from None
    metadata: dict[str, str] = header.get(_METADATA) or {}
    recorded = metadata.pop(_CHECKSUM, None)
    if recorded != _content_hash(header, memoryview(content)[8 + size :]):
        raise BadArtifact(f"{what} '{path}' is corrupt: its checksum does not match; {remedy}")
    return tensors, metadata


@contextmanager
def understood(path: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Raise BadArtifact if the block misses an entry of an artifact or cannot interpret one."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact(f"{what} '{path}' is wrong at {error}; {remedy}") from None


def check_numbers(tensors: "Mapping[str, Tensor]", path: Path, *, what: str, remedy: str) -> None:
    """Raise BadArtifact unless all of a model's tensors are finite floating-point numbers."""
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):  # the counter of batch norm
            continue
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise BadArtifact(
                f"{what} '{path}': tensor '{name}' has values that are not finite floating-point"
                f" numbers; {remedy}"
            )


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` for all files in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    lines = [f"{file_hash(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_text(folder / SUMS, "".join(lines))


def check_sum(path: Path, *, what: str = "file", remedy: str) -> None:
    """Verify a file against the `SHA256SUMS` beside it.

    Raises:
        MissingFile: the file or `SHA256SUMS` does not exist.
        BadArtifact: it is not listed, or its checksum does not match.
    """
    sums = path.parent / SUMS
    digest = file_hash(path, what=what, remedy=remedy)
    listed = _read_bytes(sums, f"checksum of the {what}", remedy).splitlines()
    if f"{digest}  {path.name}".encode() not in listed:
        raise BadArtifact(f"{what} '{path}' does not match its checksum in '{sums}'; {remedy}")


def file_hash(path: Path, *, what: str = "file", remedy: str = "check the path") -> str:
    """Return the SHA-256 of a file in hexadecimal; raises MissingFile or BadArtifact."""
    with _opened(path, what, remedy) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_bytes(path: Path, what: str, remedy: str) -> bytes:
    with _opened(path, what, remedy) as file:
        return file.read()


@contextmanager
def _opened(path: Path, what: str, remedy: str) -> Iterator[BufferedReader]:
    if not path.is_file():
        raise missing(what, path, remedy)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BadArtifact(f"{what} '{path}' cannot be read ({error.strerror}); {remedy}") from None


def _plain(tensors: "Mapping[str, Tensor]") -> tuple[dict[str, Any], bytes]:
    """Return the header, without metadata, and the data of a safetensors file."""
    from safetensors.torch import save

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # Without metadata the library's header of no tensors is not JSON.
    content = save(plain, metadata={_CHECKSUM: ""})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return {**header, _METADATA: {}}, content[8 + size :]


def _encoded(header: Mapping[str, Any]) -> bytes:
    """Encode a safetensors header with sorted keys; the library's order differs from run to run."""
    text = _sorted_json(header)
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _content_hash(header: Mapping[str, Any], data: bytes | memoryview) -> str:
    """Hash the content of a safetensors file without its checksum."""
    digest = hashlib.sha256(_sorted_json(header))
    digest.update(data)
    return digest.hexdigest()


def _sorted_json(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
