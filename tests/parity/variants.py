"""Wrong variants of parts of the method, for the tests of the parity checks."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import checks
import pytest
import traces
from torch import Tensor, nn

from pd_core.models.prompts import DeepPrompts, encode_image

Patch = Callable[[pytest.MonkeyPatch], None]


def patch(target: object, name: str, wrong: object) -> Patch:
    """Replace an attribute of a module or a class."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, wrong)


def cases(variants: Mapping[str, Mapping[str, Patch]]) -> pytest.MarkDecorator:
    """Parametrise a test by the variants of each part: `part` and `wrong`."""
    rows = [
        pytest.param(part, wrong, id=name)
        for part, patches in variants.items()
        for name, wrong in patches.items()
    ]
    return pytest.mark.parametrize(("part", "wrong"), rows)


class Changed:
    """Another object with some attributes replaced."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self._original = original
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def image_without_ln_pre(tower: Any, images: Tensor, prompts: DeepPrompts | None = None) -> Tensor:
    return encode_image(Changed(tower, ln_pre=nn.Identity()), images, prompts)


@cache
def right(name: str, part: str) -> traces.Trace:
    """Return a recording that passes the check of a part, whose first step suffices."""
    trace = traces.load(traces.OWN / name, steps=1 if part.endswith("_steps") else None)
    checks.ALL[part](trace).verify()
    return trace


def assert_noticed(name: str, part: str, wrong: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the check of a part fails with a wrong variant."""
    trace = right(name, part)
    wrong(monkeypatch)
    with pytest.raises(AssertionError):
        checks.ALL[part](trace).verify()
