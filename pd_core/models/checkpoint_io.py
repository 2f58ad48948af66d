"""Read CLIP weights and foreign torch checkpoints from local files, without running their code.

Formats: safetensors, TorchScript archives (OpenAI's) and pickles, of which a restricted unpickler
reads tensors and plain containers only.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from pd_core.core.errors import BadArtifact, missing

_ZIP_START = b"PK\x03\x04"  # what torch itself goes by, wherever the rest of a zip may be
_PROGRAM = "constants.pkl"  # a record of every TorchScript archive, and of no other file

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Records:
    """The records of a torch file.

    They are read by Python's zip reader alone, since two readers may see different things in one
    file. torch packs no numbers, so a record is never larger than its file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Open the file; nothing is read yet.

        Raises:
            ValueError: it is not laid out as torch does it, or a record claims too much.
            BadZipFile: it is damaged.
        """
        self._zip = zipfile.ZipFile(file)
        names = self._zip.namelist()
        match [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]:
            case [pickled]:
                self._root = pickled.removesuffix("data.pkl")
            case _:
                raise ValueError("there is no pickle in it, or more than one")
        size = file.seek(0, io.SEEK_END)
        for record in self._zip.infolist():
            if record.file_size > size:
                raise ValueError(
                    f"record '{record.filename}' claims {record.file_size} bytes, the size of the"
                    f" whole file is {size}"
                )
        if self.has("byteorder") and self.read("byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")

    def has(self, name: str) -> bool:
        """Whether there is such a record."""
        return self._root + name in self._zip.NameToInfo

    @property
    def is_program(self) -> bool:
        """Whether this is a TorchScript archive."""
        return self.has(_PROGRAM)

    def read(self, name: str) -> bytes:
        """Read a record."""
        with self._zip.open(self._root + name) as record:
            return record.read(self._zip.getinfo(self._root + name).file_size)

    def numbers(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Read a record of numbers, (count,)."""
        size = self._zip.getinfo(self._root + name).file_size
        if size != count * dtype.itemsize:
            raise ValueError(f"record '{name}' has the size {size}, not {count * dtype.itemsize}")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        content = bytearray(size)  # which a tensor can be made of without another copy
        with cast(zipfile.ZipExtFile, self._zip.open(self._root + name)) as record:
            record.readinto(content)
        return torch.frombuffer(content, dtype=dtype)


class _Dictionary(dict[Any, Any]):
    """An ordered dictionary that takes no attributes, which could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drop the versions that torch notes on a state dict."""


class _Callable:
    """What a file may call, and do nothing else to.

    A pickle can set attributes of all that it gets hold of; torch's own
    functions would stay changed for the rest of the process.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        """Keep the function."""


class _Inert:
    """Stands for every class, function and object that a file may not have.

    It can be made, called, filled and restored in all the ways of a pickle. The
    methods are static since a pickle can treat the class like an object of it.
    """

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> "_Inert":
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    @staticmethod
    def _ignore(*_: object) -> None:
        pass

    __setstate__ = append = extend = add = _ignore


class _Numbers:
    """The type of a storage: that of its numbers."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: object) -> None:
        """Keep the type."""


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> object:
    """Rebuild a tensor, without gradient hooks; of a kind that is not known, a placeholder."""
    if not isinstance(storage, Tensor) or metadata:
        return _Inert()
    if math.prod(size) > len(storage):  # repeated numbers, which take memory when used
        raise ValueError(f"a tensor of size {list(size)} has only {len(storage)} numbers")
    return storage.as_strided(size, stride, offset)


def _data(data: object, *_: object) -> object:
    """Take a parameter for the tensor that it is."""
    return data


_KNOWN = {
    ("collections", "OrderedDict"): _Callable(_Dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_data),
    **{("torch", name): _Numbers(dtype) for name, dtype in _DTYPES.items()},
}


class Unpickler(pickle._Unpickler):
    """Rebuilds what a torch file holds; finds nothing but `_KNOWN`.

    It is the one written in Python: the one in C takes as much memory as a file tells it to.
    """

    def __init__(self, records: Records) -> None:
        """Take the records of a file; `load` does the rest."""
        super().__init__(io.BytesIO(records.read("data.pkl")), encoding="utf-8")
        self._records = records
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what stands for a name."""
        return _KNOWN.get((module_name, global_name), _Inert)

    def persistent_load(self, saved: Any) -> object:
        """Return the numbers of a storage; a placeholder if their kind is not known."""
        what, kind, key, _, count = saved
        if what != "storage" or not isinstance(key, str) or not isinstance(kind, _Numbers):
            return _Inert()
        place = key, kind.dtype
        if place not in self._storages:
            self._storages[place] = self._records.numbers(f"data/{key}", kind.dtype, count)
        return self._storages[place]


def read_checkpoint(path: Path, *, what: str = "checkpoint") -> dict[str, Any]:
    """Read a file of `torch.save` onto the CPU; nothing in it is executed.

    Args:
        path: the file, in the zip format of torch >= 1.6.
        what: what it is, for the messages.

    Returns:
        What was saved. Tensors, plain containers, numbers and strings are as
        they were, ordered dictionaries are plain ones; every other object is
        a placeholder without content.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is damaged, a TorchScript archive, in the legacy format,
            or no dictionary with names for keys.
    """
    with open_records(path, what=what) as records:
        if records.is_program:
            raise BadArtifact(
                f"{what} '{path}' is a TorchScript archive, which is a program; give a file of"
                " torch.save with a 'state_dict'"
            )
        content = Unpickler(records).load()
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadArtifact(
            f"{what} '{path}' is not a dictionary with names for keys; give a file with a"
            " 'state_dict', or a state dict itself"
        )
    return dict(content)


@contextmanager
def open_records(path: Path, *, what: str) -> Iterator[Records]:
    """Open a torch file; whatever goes wrong with it in the block is said in one line.

    Args:
        path: the file.
        what: what it is, for the messages.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is damaged, or in the legacy format.
    """
    if not path.is_file():
        remedy = "give a file that the original code saved, such as 'model.pth.tar-20'"
        raise missing(what, path, remedy)
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_START)) != _ZIP_START:
                raise BadArtifact(
                    f"{what} '{path}' cannot be read: it is not a zip file, as torch.save writes"
                    " it; if it is one of torch < 1.6, load it where you trust it and save it"
                    " again with torch >= 1.6"
                )
            yield Records(file)
    except BadArtifact:
        raise
    except Exception as error:  # a damaged file can make torch and pickle raise anything
        reason = str(error).split(". ")[0] or type(error).__name__
        raise BadArtifact(
            f"{what} '{path}' cannot be read ({reason[:300]}); copy or save it again"
        ) from None


_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE
)
_NAME = re.compile(r'"([^"]+)"')

# A large CLIP has a thousand modules, with names of sixty letters; but a file may say that a module
# is a part of itself.
_MOST_MODULES = 100_000
_LONGEST_NAME = 1_000


class _Module:
    """Holds the attributes of a module of one class.

    Attributes:
        tensors: names of the class's parameters and buffers.
        content: what the file gives the module, by name.
    """

    tensors: frozenset[str] = frozenset()
    content: dict[Any, object] = {}

    def __setstate__(self, state: object) -> None:
        """Keep the attributes apart from this object's own, which they could hide."""
        if isinstance(state, dict):
            self.content = state


class _Unpickler(Unpickler):
    """Makes a `_Module` of an object of a class that the archive's code has as a module."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._classes: dict[str, dict[str, type[_Module]]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = self._modules(module_name).get(global_name)
        return found or super().find_class(module_name, global_name)

    def _modules(self, namespace: str) -> dict[str, type[_Module]]:
        """Return the modules that the code of a namespace declares."""
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
    """Read the state dict of a TorchScript archive onto the CPU; nothing in it is executed.

    Returns:
        The parameters and buffers that are stored, by names such as `visual.conv1.weight`.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is damaged, or no TorchScript archive.
    """
    with open_records(path, what=what) as records:
        module = _Unpickler(records).load()
        if not isinstance(module, _Module):
            raise ValueError("it is no TorchScript archive of a module")
        return dict(_tensors(module))


def _tensors(module: _Module) -> Iterator[tuple[str, Tensor]]:
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        if seen > _MOST_MODULES or len(prefix) > _LONGEST_NAME:
            raise ValueError("its modules hold each other without end")
        for name, value in module.content.items():
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in module.tensors:
                yield f"{prefix}{name}", value


# OpenAI's archives carry these beside the weights; no other publisher's files do.
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
_WHAT = "weights"
_FP32 = 4  # bytes
_MOST_GROWTH = 16  # from file to memory; bytes become numbers of four, and weights may be tied
_HALF_AT_OPENAI = re.compile(
    r"(conv1|in_proj|out_proj|c_fc|c_proj)[._]weight$|(^|[._])proj(ection)?$"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict; also tell by what sign it is OpenAI's, or nothing.

    OpenAI's own archives say so by extra entries. Copies of them in other
    formats are recognised by their values: OpenAI published its matrices in
    half precision, so that they survive a round trip through it.

    Nothing in the file is executed.

    Args:
        path: `.safetensors`, `.pt` with a state dict, or a TorchScript archive.

    Returns:
        The tensors in fp32, and the sign in words.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: the file cannot be read.
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
    halves = bool(matrices) and all(torch.equal(one, one.half().float()) for one in matrices)
    return state, "by its half-precision values; store another publisher's in fp32" * halves


def _read_any(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with open_records(path, what=_WHAT) as records:
        is_program = records.is_program
    if is_program:  # what OpenAI publishes
        return read_archive(path, what=_WHAT)
    content = read_checkpoint(path, what=_WHAT)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise BadArtifact(f"'state_dict' in {_WHAT} '{path}' is no state dict; save the file again")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # which compares shapes with sizes before it takes memory
    except (SafetensorError, OSError, ValueError) as error:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read ({error}); give a .pt or .safetensors file"
        ) from None


def _check_size(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file that names the same numbers so often that they would fill the memory."""
    count = sum(value.numel() for value in content.values() if isinstance(value, Tensor))
    if _FP32 * count > _MOST_GROWTH * path.stat().st_size:
        raise BadArtifact(
            f"{_WHAT} '{path}' cannot be read: {count} numbers are more than it has bytes for;"
            " copy or save it again"
        )
