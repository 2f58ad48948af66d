"""Ways to make a part of the method wrong, for the tests of the tests."""

from collections.abc import Callable
from typing import Any

import pytest

Patch = Callable[[pytest.MonkeyPatch], None]


def patch(target: object, name: str, wrong: object) -> Patch:
    """Replace an attribute of a module or a class."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, wrong)


class Changed:
    """Another object with some attributes replaced."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self._original = original
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
