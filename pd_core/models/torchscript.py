"""The weights of a TorchScript archive, such as OpenAI's, without running the program that it is.

An archive has the code of its modules' classes, and a pickle with their attributes. The code is
searched for the names of parameters and buffers, and never compiled; a module is rebuilt as a plain
holder of its attributes.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from pd_core.models.unpickle import Records, Unpickler, open_records

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

    Args:
        path: the file.
        what: what it is, for the messages.

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
