"""Reading foreign torch checkpoints without running anything that is in them.

A checkpoint is a pickle, and a pickle is a program: it may call any function by
name. Checkpoints of other people's training code hold their schedulers and
optimisers as objects, so torch's own safe reader (`weights_only`) refuses them
whole. Here the program may rebuild tensors and ordered dictionaries; whatever
else it names is replaced by an object that does nothing.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from pd_core.errors import BadArtifact, missing

_ZIP_START = b"PK\x03\x04"  # what torch itself goes by, wherever the rest of a zip may be


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


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> object:
    """Rebuild a tensor as torch does, without its gradient hooks."""
    rebuild: Any = torch._utils._rebuild_tensor_v2
    rebuilt: Tensor = rebuild(storage, offset, size, stride, False, None, metadata)
    return rebuilt


def _data(data: object, *_: object) -> object:
    """Take a parameter for the tensor that it is."""
    return data


_KNOWN = {
    ("collections", "OrderedDict"): _Callable(_Dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_data),
}


class _Unpickler(pickle.Unpickler):
    """Finds nothing but `_KNOWN`.

    torch derives from this class and answers for the storage types itself, with
    objects that only hold the type of the numbers.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        return _KNOWN.get((module_name, global_name), _Inert)


# Takes the place of the module `pickle`; without its `load`, torch can read no legacy file by it.
_PICKLE = SimpleNamespace(__name__="restricted pickle", Unpickler=_Unpickler)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` onto the CPU; nothing in it is executed.

    Args:
        path: the file, in the zip format of torch >= 1.6.

    Returns:
        What was saved. Tensors, plain containers, numbers and strings are as
        they were, ordered dictionaries are plain ones; every other object is
        a placeholder without content.

    Raises:
        MissingFile: there is no such file.
        BadArtifact: it is damaged, a TorchScript archive, in the legacy format,
            or no dictionary with names for keys.
    """
    if not path.is_file():
        remedy = "give a file that the original code saved, such as 'model.pth.tar-20'"
        raise missing("checkpoint", path, remedy)
    try:
        with path.open("rb") as file:
            _check_format(path, file)
            content = torch.load(
                file, map_location="cpu", weights_only=False, mmap=False, pickle_module=_PICKLE
            )
    except BadArtifact:
        raise
    except Exception as error:  # a damaged file can make torch and pickle raise anything
        reason = str(error).split(". ")[0] or type(error).__name__
        raise BadArtifact(
            f"checkpoint '{path}' cannot be read ({reason[:300]}); copy or save it again"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadArtifact(
            f"checkpoint '{path}' is not a dictionary with names for keys; give a file with a"
            " 'state_dict', or a state dict itself"
        )
    return dict(content)


def _check_format(path: Path, file: IO[bytes]) -> None:
    """Refuse the formats that torch reads in other ways than by our unpickler."""
    if file.read(len(_ZIP_START)) != _ZIP_START:
        raise BadArtifact(
            f"checkpoint '{path}' is not a zip file, as torch.save writes it; if it is one of"
            " torch < 1.6, load it where you trust it and save it again with torch >= 1.6"
        )
    file.seek(0)  # torch takes the place where the file stands for its start
    # torch's own reader, since two readers may see different things in one zip file.
    if "constants.pkl" in torch._C.PyTorchFileReader(file).get_all_records():
        raise BadArtifact(
            f"checkpoint '{path}' is a TorchScript archive, which is a program; give a file of"
            " torch.save with a 'state_dict'"
        )
    file.seek(0)
