"""Restricted unpickling of torch files: tensors and plain containers, without executing code."""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any, cast

import torch
from torch import Tensor

_PROGRAM = "constants.pkl"  # record of TorchScript archives only

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
    """The records of a torch file, by Python's zip reader: torch's own may see other content.

    torch does not compress, so a record is never larger than its file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Open the file; raises ValueError if its layout is not torch's, BadZipFile if corrupt."""
        self._zip = zipfile.ZipFile(file)
        names = self._zip.namelist()
        match [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]:
            case [pickled]:
                self._root = pickled.removesuffix("data.pkl")
            case _:
                raise ValueError("it must have one pickle")
        size = file.seek(0, io.SEEK_END)
        for record in self._zip.infolist():
            if record.file_size > size:
                raise ValueError(
                    f"record '{record.filename}' has {record.file_size} bytes, its file {size}"
                )
        if self.has("byteorder") and self.read("byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")

    def has(self, name: str) -> bool:
        """Return True if there is a record of this name."""
        return self._root + name in self._zip.NameToInfo

    @property
    def is_program(self) -> bool:
        """True for a TorchScript archive."""
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
        content = bytearray(size)  # a tensor can use it without a copy
        with cast(zipfile.ZipExtFile, self._zip.open(self._root + name)) as record:
            record.readinto(content)
        return torch.frombuffer(content, dtype=dtype)


class _Dictionary(dict[Any, Any]):
    """An ordered dictionary without attributes, which could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the versions that torch stores on a state dict."""


class _Callable:
    """A function that a file may call, but not modify: a pickle can set attributes of objects."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Inert:
    """Placeholder for all other classes, functions and objects.

    It can be created, called, filled and restored in all ways of a pickle. The methods are static
    since a pickle can use the class like an instance.
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
    """Type of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> object:
    """Rebuild a tensor without gradient hooks; a placeholder for one of an unknown kind."""
    if not isinstance(storage, Tensor) or metadata:
        return _Inert()
    if math.prod(size) > len(storage):  # an expanded one takes memory when it is used
        raise ValueError(f"a tensor of size {list(size)} has only {len(storage)} numbers")
    return storage.as_strided(size, stride, offset)


def _data(data: object, *_: object) -> object:
    """Return the tensor of a parameter."""
    return data


_KNOWN = {
    ("collections", "OrderedDict"): _Callable(_Dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_data),
    **{("torch", name): _Numbers(dtype) for name, dtype in _DTYPES.items()},
}


class Unpickler(pickle._Unpickler):
    """Unpickler of torch files, restricted to `_KNOWN`.

    Based on Python's own: the one in C allocates whatever size a file states.
    """

    def __init__(self, records: Records) -> None:
        """Prepare to `load` the records of a file."""
        super().__init__(io.BytesIO(records.read("data.pkl")), encoding="utf-8")
        self._records = records
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement of a name."""
        return _KNOWN.get((module_name, global_name), _Inert)

    def persistent_load(self, saved: Any) -> object:
        """Return a storage as a tensor; a placeholder if its type is unknown."""
        tag, kind, key, _, count = saved
        if tag != "storage" or not isinstance(key, str) or not isinstance(kind, _Numbers):
            return _Inert()
        storage = key, kind.dtype
        if storage not in self._storages:
            self._storages[storage] = self._records.numbers(f"data/{key}", kind.dtype, count)
        return self._storages[storage]
