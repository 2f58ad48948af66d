"""Reading foreign torch files without running anything that is in them.

Such a file is a zip with a pickle in it, and a pickle is a program: it may call any function by
name. Checkpoints of other people's training code hold their schedulers and optimisers as objects,
so torch's own safe reader (`weights_only`) refuses them whole. Here the program may rebuild tensors
and ordered dictionaries; whatever else it names is replaced by an object that does nothing. torch
itself never sees the file, and no memory is taken that the file does not account for.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from pd_core.errors import BadArtifact, missing

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

    Yields:
        Its records.

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
