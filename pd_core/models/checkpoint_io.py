"""Read CLIP weights and torch checkpoints without executing code in them.

Formats: safetensors, TorchScript archives (OpenAI's), and pickles, of which a restricted unpickler
reads tensors and plain containers.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pd_core.core.errors import BadArtifact, missing
from pd_core.models.unpickling import Records, Unpickler

_ZIP_START = b"PK\x03\x04"  # torch too recognises its files by it


def read_checkpoint(path: Path, *, what: str = "checkpoint") -> dict[str, Any]:
    """Read a dictionary from a file of `torch.save` (torch >= 1.6) onto the CPU.

    Tensors, plain containers, numbers and strings are returned, all other objects as placeholders.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it is corrupt, a TorchScript archive, in the legacy format, or not a dictionary
            with strings as keys.
    """
    with open_records(path, what=what) as records:
        if records.is_program:
            raise BadArtifact(
                f"{what} '{path}' is a TorchScript archive; give a file of torch.save with a"
                " 'state_dict'"
            )
        content = Unpickler(records).load()
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadArtifact(
            f"{what} '{path}' is not a dictionary with strings as keys; give a file with a"
            " 'state_dict', or a state dict itself"
        )
    return dict(content)


@contextmanager
def open_records(path: Path, *, what: str) -> Iterator[Records]:
    """Open a torch file; errors in the block become BadArtifact.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it is corrupt, or in the legacy format.
    """
    if not path.is_file():
        remedy = "give a file that the original code saved, such as 'model.pth.tar-20'"
        raise missing(what, path, remedy)
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_START)) != _ZIP_START:
                raise BadArtifact(
                    f"{what} '{path}' cannot be read: it is not a zip file of torch.save; if it is"
                    " of torch < 1.6 and you trust it, save it again with torch >= 1.6"
                )
            yield Records(file)
    except BadArtifact:
        raise
    except Exception as error:  # a corrupt file can make torch and pickle raise anything
        reason = str(error).split(". ")[0] or type(error).__name__
        raise BadArtifact(
            f"{what} '{path}' cannot be read ({reason[:300]}); copy or save it again"
        ) from None


_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE
)
_NAME = re.compile(r'"([^"]+)"')

# A large CLIP has a thousand modules with names of sixty letters; in a file a module may contain
# itself.
_MOST_MODULES = 100_000
_LONGEST_NAME = 1_000


class _Module:
    """A module of one class.

    Attributes:
        tensors: names of the class's parameters and buffers.
        content: the module's attributes, by name.
    """

    tensors: frozenset[str] = frozenset()
    content: dict[Any, object] = {}

    def __setstate__(self, state: object) -> None:
        """Store the attributes apart from this object's own, which they could hide."""
        if isinstance(state, dict):
            self.content = state


class _Unpickler(Unpickler):
    """Unpickler that makes a `_Module` of each module class in the archive's code."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._classes: dict[str, dict[str, type[_Module]]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        module = self._modules(module_name).get(global_name)
        return module or super().find_class(module_name, global_name)

    def _modules(self, namespace: str) -> dict[str, type[_Module]]:
        """Return the module classes in the code of a namespace."""
        code = f"code/{namespace.replace('.', '/')}.py"
        if namespace not in self._classes:
            text = self._records.read(code).decode() if self._records.has(code) else ""
            self._classes[namespace] = {
                name: type(name, (_Module,), {"tensors": frozenset(_NAME.findall(names))})
                for name, *declared in _CLASS.findall(text)
                for names in [" ".join(declared)]
            }
        return self._classes[namespace]


def read_archive(path: Path, *, what: str = "archive") -> dict[str, Tensor]:
    """Read the state dict of a TorchScript archive onto the CPU.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it is corrupt, or not a TorchScript archive.
    """
    with open_records(path, what=what) as records:
        module = _Unpickler(records).load()
        if not isinstance(module, _Module):
            raise ValueError("it is not a TorchScript archive of a module")
        return dict(_tensors(module))


def _tensors(module: _Module) -> Iterator[tuple[str, Tensor]]:
    queue, count = [("", module)], 0
    while queue:
        prefix, module = queue.pop()
        count += 1
        if count > _MOST_MODULES or len(prefix) > _LONGEST_NAME:
            raise ValueError("its modules contain each other without end")
        for name, value in module.content.items():
            if isinstance(value, _Module):
                queue.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in module.tensors:
                yield f"{prefix}{name}", value


# Entries beside the weights in OpenAI's archives only.
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
_WHAT = "weights"
_FP32 = 4  # bytes
_MOST_GROWTH = 16  # from file to memory: bytes become fp32, and weights may be tied
_HALF_AT_OPENAI = re.compile(
    r"(conv1|in_proj|out_proj|c_fc|c_proj)[._]weight$|(^|[._])proj(ection)?$"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict in fp32, and the reason why it is taken for OpenAI's, or "".

    OpenAI's archives have extra entries. Copies in other formats are recognised by their values:
    OpenAI published its matrices in half precision.

    Args:
        path: `.safetensors`, `.pt` with a state dict, or a TorchScript archive.

    Raises:
        MissingFile: the file does not exist.
        BadArtifact: it cannot be read.
    """
    content = _read_any(path)
    _check_size(path, content)
    state = {
        key.removeprefix("module."): value.float()
        for key, value in content.items()
        if isinstance(value, Tensor) and key not in OPENAI_ONLY
    }
    if any(key in content for key in OPENAI_ONLY):
        return state, "by its entries"
    matrices = [value for key, value in state.items() if _HALF_AT_OPENAI.search(key)]
    halves = bool(matrices) and all(torch.equal(each, each.half().float()) for each in matrices)
    return state, "by its half-precision values; store another publisher's in fp32" * halves


def _read_any(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with open_records(path, what=_WHAT) as records:
        is_program = records.is_program
    if is_program:
        return read_archive(path, what=_WHAT)
    content = read_checkpoint(path, what=_WHAT)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise BadArtifact(f"'state_dict' in {_WHAT} '{path}' is not one; save the file again")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # checks sizes against shapes before it allocates memory
    except (SafetensorError, OSError, ValueError) as error:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read ({error}); give a .pt or .safetensors file"
        ) from None


def _check_size(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file that refers to the same storage so often that it would fill the memory."""
    count = sum(value.numel() for value in content.values() if isinstance(value, Tensor))
    if _FP32 * count > _MOST_GROWTH * path.stat().st_size:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read: {count} numbers are more than its size allows; copy"
            " or save it again"
        )
