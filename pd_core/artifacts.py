"""Files that stages hand to each other: JSON, safetensors, and folders of them.

Everything is written beside its destination and renamed into place, so that a
reader sees the old content or the new one, never a half. The same content gives
the same bytes: sorted keys, no times, no host names.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_core.errors import BadArtifact, PdError, missing

if TYPE_CHECKING:
    from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with line feeds on every system.

    Raises:
        PdError: the folder cannot be written.
    """
    _write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON: sorted keys, two-space indent, a newline at the end.

    Raises:
        PdError: the folder cannot be written.
        ValueError: the value holds a NaN or an infinity, which JSON has not.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, *, what: str = "file", remedy: str = "run the stage before") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it is, for the message when it is absent.
        remedy: what to do when it is absent.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(what, path, remedy) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadArtifact(f"{what} '{path}' is not JSON ({error}); {remedy}") from None


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, in the order of their names.

    Args:
        path: the file.
        tensors: any shapes; copied to the CPU.
        metadata: strings that describe them, stored in the file's header.

    Raises:
        PdError: the folder cannot be written.
    """
    from safetensors.torch import save

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    _write_bytes(path, _sorted_header(save(plain, metadata=dict(metadata))))


def read_tensors(
    path: Path, *, what: str = "file", remedy: str = "run the stage before"
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read a safetensors file onto the CPU.

    Args:
        path: the file.
        what: what it is, for the messages.
        remedy: what to do when it is absent or damaged.

    Returns:
        The tensors by name, and the metadata (empty if there is none).

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise missing(what, path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise BadArtifact(f"{what} '{path}' is not safetensors ({error}); {remedy}") from None


def file_hash(path: Path, *, what: str = "file") -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        MissingFile: there is no such file.
    """
    if not path.is_file():
        raise missing(what, path, "check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Fill a folder, then put it in place of `path` at once.

    The block gets an empty folder beside `path`. If it raises, `path` stays as
    it was.

    Args:
        path: the folder to make or to replace.

    Yields:
        The folder to write into.

    Raises:
        PdError: the parent folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        old = temporary / "old"
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sorted_header(data: bytes) -> bytes:
    """Rewrite a safetensors header with sorted keys.

    The library keeps the metadata in a hash map, whose order differs from run
    to run, so equal content would give unequal files.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _write_bytes(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private to the user
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> PdError:
    reason = error.strerror or str(error)
    return PdError(f"cannot write '{path}': {reason}; choose a folder you can write to")
