"""Nothing in a foreign checkpoint is executed."""

import contextlib
import importlib
import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from archive_files import rewrite
from original_files import assert_matches, assert_tiny_prompts, refused, save, tiny_state
from torch import Tensor

from pd_core.core.errors import BadArtifact
from pd_core.models.checkpoint_io import read_checkpoint
from pd_core.models.published_checkpoint import import_teacher

# Files that do harm when they are read without care.


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call

    def __call__(self) -> None:
        """Stand for what the call returns, where pickle wants something to call."""


class Restored:
    """Runs when its state is restored."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["marker"].touch()


class HarmfulStorage(Restored):
    """Has a name that torch's own reader treats in a special way."""


class Appended(list[Path]):
    """Runs when a list is filled."""

    def append(self, item: Path) -> None:
        item.touch()

    def extend(self, items: Iterable[Path]) -> None:
        for item in items:
            item.touch()


class Filled(dict[str, Path]):
    """Runs when a dictionary is filled."""

    def __setitem__(self, key: str, value: Path) -> None:
        value.touch()


class Made:
    """Runs when it is created."""

    marker: Path

    def __new__(cls, marker: Path, *, touch: bool = True) -> "Made":
        if touch:
            marker.touch()
        made = super().__new__(cls)
        made.marker = marker
        return made

    def __getnewargs__(self) -> tuple[Path]:
        return (self.marker,)


BOMBS: dict[str, Callable[[Path], object]] = {
    "os.system": lambda marker: Call(os.system, f"touch '{marker}'"),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w').close()"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w').close()"),
    "getattr": lambda marker: Call(Call(getattr, Call(Path, marker), "touch")),
    "__setstate__": Restored,
    "a name with Storage": HarmfulStorage,
    "extend": lambda marker: Appended([marker]),
    "__setitem__": lambda marker: Filled(a=marker),
    "__new__": lambda marker: Made(marker, touch=False),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", BOMBS)
def test_nothing_in_a_hostile_file_is_run_and_its_weights_are_read(
    tmp_path: Path, name: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    harm = BOMBS[name](marker)
    path = save(
        tmp_path / "a.tar",
        tiny_state(),
        protocol=protocol,
        optimizer={"state": {0: {"momentum_buffer": harm}}, "param_groups": [harm]},
        scheduler=harm,
    )
    assert_harmful(path, marker)

    imported = import_teacher(path, tiny.towers())

    assert not marker.exists()
    assert_tiny_prompts(imported.model)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("place", ["state_dict", "weight", "everything"])
def test_a_hostile_object_in_place_of_weights_is_refused(
    tmp_path: Path, name: str, place: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.tar"
    harm = BOMBS[name](marker)
    match place:
        case "state_dict":
            save(path, {}, scheduler=None, state_dict=harm)
        case "weight":
            save(path, {**tiny_state(), "prompt_learner.ctx": harm}, scheduler=None)
        case _:
            torch.save(harm, path)
    assert_harmful(path, marker)

    refused(import_teacher, path, tiny.towers())

    assert not marker.exists()


def assert_harmful(path: Path, marker: Path) -> None:
    """Read a file as one should not, to know that it would run something."""
    torch.load(path, map_location="cpu", weights_only=False)
    assert marker.exists(), "this file does no harm"
    marker.unlink()


@pytest.mark.parametrize(
    "target",
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "UntypedStorage"),
    ],
    ids=lambda target: target[1],
)
def test_a_file_cannot_change_what_torch_is_made_of(
    tmp_path: Path, target: tuple[str, str]
) -> None:
    path, (module, name) = save(tmp_path / "a.tar", {}, scheduler=None), target
    real = getattr(importlib.import_module(module), name)
    # The object, a state (no attributes, {"planted": 7}), and the command to restore it.
    program = f"c{module}\n{name}\n(N}}X\x07\0\0\0plantedK\x07stb.".encode()
    rewrite(path, {"a/data.pkl": b"\x80\x02" + program})
    torch.load(path, weights_only=False)
    assert real.planted == 7, "this file does no harm"
    del real.planted

    with pytest.raises(BadArtifact):
        read_checkpoint(path)

    assert not hasattr(real, "planted")


@pytest.mark.parametrize(
    "known",
    [("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("any", "thing")],
    ids=lambda known: known[1],
)
def test_a_file_cannot_change_how_the_next_one_is_read(
    tmp_path: Path, known: tuple[str, str]
) -> None:
    path, (module, name) = save(tmp_path / "a.tar", {}, scheduler=None), known
    for attribute in ("_function", "planted", "append"):
        length = len(attribute).to_bytes(4, "little")
        # A dictionary with the object after it was given the attribute, with 7 for its value.
        program = b"".join(
            [b"\x80\x02}X\x01\0\0\0x", f"c{module}\n{name}\n".encode(), b"(N}X", length]
            + [attribute.encode(), b"K\x07stbs."]
        )
        rewrite(path, {"a/data.pkl": program})
        with contextlib.suppress(BadArtifact):
            assert getattr(read_checkpoint(path)["x"], attribute, None) != 7
    whole = save(tmp_path / "b.tar", tiny_state(), optimizer=[Appended([tmp_path])])

    assert_tiny_prompts(import_teacher(whole, tiny.towers()).model)


def test_methods_of_an_ordered_dictionary_cannot_be_hidden(tmp_path: Path) -> None:
    state = OrderedDict(tiny_state())
    for name in ("get", "keys", "values", "__iter__"):
        setattr(state, name, 3)
    torch.save(state, tmp_path / "a.tar")

    assert_tiny_prompts(import_teacher(tmp_path / "a.tar", tiny.towers()).model)


class Program(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_torchscript_archive_is_refused_before_torch_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive.tar"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        script: Any = torch.jit.script
        script(Program()).save(archive)
    marked = save(tmp_path / "marked.tar", tiny_state())
    rewrite(marked, {"marked/constants.pkl": b""})
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))

    for path in (archive, marked):
        assert_matches(refused(import_teacher, path, tiny.towers()), "is a TorchScript archive")


@pytest.mark.parametrize("end", [b"", b"a zip file"])
def test_the_legacy_format_is_refused(tmp_path: Path, end: bytes) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.tar"
    harm = BOMBS["os.system"](marker)
    torch.save({"state_dict": harm}, path, _use_new_zipfile_serialization=False)
    if end:  # then Python's zipfile takes the file for one, and torch does not
        end = save(tmp_path / "zip.tar", tiny_state()).read_bytes()
        path.write_bytes(path.read_bytes() + end)
    assert zipfile.is_zipfile(path) is bool(end)
    assert_harmful(path, marker)

    message = refused(import_teacher, path, tiny.towers())

    assert_matches(message, "is not a zip file.*save it again with torch >= 1.6")
    assert not marker.exists()
