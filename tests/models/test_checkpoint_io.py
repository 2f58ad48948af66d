"""Weights from elsewhere run nothing, and take no more memory than they account for."""

import contextlib
import json
import resource
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_files import rewrite
from torch import Tensor, nn

from pd_core.core.errors import BadArtifact
from pd_core.models.checkpoint_io import read_archive, read_checkpoint, read_weights

ROOT = Path(__file__).parents[2]

# TorchScript archives


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3).half())
        self.register_buffer("steps", torch.arange(3))
        self.beside = torch.ones(2)  # no part of the state
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.blocks[1].weight = self.blocks[0].weight
        self.proj = nn.Parameter(torch.randn(6, 5).bfloat16().t()[1:])
        self.register_buffer("input_resolution", torch.tensor(16))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.visual(x)
        return y


def archive(path: Path, *, traced: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        make: Any = torch.jit.trace if traced else torch.jit.script
        example = (torch.ones(1, 1, 4, 4),) if traced else ()
        make(Outer().eval(), *example).save(str(path))
    return path


@pytest.mark.parametrize("traced", [False, True])
def test_an_archive_gives_the_state_that_torch_gives_to_the_bit(
    traced: bool, tmp_path: Path
) -> None:
    path = archive(tmp_path / "a.pt", traced=traced)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load: Any = torch.jit.load  # what ours is compared with
        expected = load(path).state_dict()

    state = read_archive(path)

    assert {"visual.0.weight", "blocks.1.weight", "input_resolution"} <= set(state)
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert (state[name].dtype, state[name].stride()) == (value.dtype, value.stride())
        assert torch.equal(state[name], value)
    assert read_weights(path)[1] == "by its entries"


SYSTEM = b"cposix\nsystem\nX\x0c\x00\x00\x00touch MARKER\x85R"


def with_program(path: Path, program: bytes) -> Path:
    """Put a pickle into an archive: CLASS is its module's class, MODULE a module, number 0."""
    with zipfile.ZipFile(archive(path)) as file:
        pickled = next(file.read(name) for name in file.namelist() if name.endswith("/data.pkl"))
    named = b"\n".join(pickled[2:].split(b"\n")[:2]) + b"\n"
    program = program.replace(b"MODULE", b"CLASS)\x81q\x00").replace(b"CLASS", named)
    return rewrite(path, {f"{path.stem}/data.pkl": b"\x80\x02" + program})


@pytest.mark.parametrize(
    "program",
    [
        SYSTEM + b".",
        b"MODULE}X\x01\x00\x00\x00a" + SYSTEM + b"sb.",
        b"CLASS}X\x07\x00\x00\x00tensorsK\x01sb.",  # sets an attribute of a class
        b"MODULE}X\x09\x00\x00\x00__class__" + SYSTEM + b"sb.",
    ],
    ids=["in place of the module", "in it", "its class", "its attributes"],
)
def test_a_hostile_archive_runs_nothing(
    program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = with_program(tmp_path / "a.pt", program)

    with contextlib.suppress(BadArtifact):
        assert read_archive(path) == {}

    assert not (tmp_path / "MARKER").exists()


def test_modules_that_hold_each_other_are_refused(tmp_path: Path) -> None:
    program = b"MODULE}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub."
    path = with_program(tmp_path / "a.pt", program)

    with pytest.raises(BadArtifact, match="without end"):
        read_archive(path)


@pytest.mark.parametrize("read", [read_archive, read_checkpoint, read_weights])
def test_a_record_that_claims_more_than_the_file_has_is_refused(read: Any, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt")
    if read is read_checkpoint:
        torch.save({"a": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    start = 0
    while (start := content.find(b"PK\x01\x02", start)) >= 0:  # every entry of the list at the end
        content[start + 24 : start + 28] = (2**31).to_bytes(4, "little")
        start += 4
    path.write_bytes(content)

    with pytest.raises(BadArtifact, match="has 2147483648 bytes, its file"):
        read(path)


def test_numbers_that_are_repeated_without_being_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(1).expand(10**12)}, path)
    with pytest.raises(BadArtifact, match="has only 1 numbers"):
        read_weights(path)

    tensor = torch.ones(1000)
    torch.save({str(number): tensor for number in range(2000)}, path)
    with pytest.raises(BadArtifact, match="2000000 numbers are more than its size allows"):
        read_weights(path)


HOG = """
import resource, sys
from pathlib import Path
from pd_core.core.errors import PdError
from pd_core.models.checkpoint_io import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_checkpoint(Path(sys.argv[1]))
except PdError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_pickle_cannot_make_its_reader_take_memory(tmp_path: Path) -> None:
    path, limit = tmp_path / "a.pt", 2**34  # of the process's address space
    torch.save({"a": 1}, path)
    # Remembers one object under the number 2^27; C's reader makes a table of twice as many places.
    rewrite(path, {"a/data.pkl": b"\x80\x02}r" + (2**27).to_bytes(4, "little") + b"."})

    done = subprocess.run(
        [sys.executable, "-c", HOG, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip

    assert int(done.stdout.splitlines()[-1]) < 100_000  # KiB


@pytest.mark.parametrize("damage", ["header", "length", "shape", "cut", "overlap"])
def test_safetensors_that_declare_more_than_they_hold_are_refused(
    damage: str, tmp_path: Path
) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    tensors = {"a": entry}
    match damage:
        case "shape":
            entry["shape"] = [2**40]
        case "header":
            entry |= {"shape": [2**40], "data_offsets": [0, 2**42]}
        case "overlap":
            tensors["b"] = entry
    header = json.dumps(tensors).encode()
    size = 2**40 if damage == "length" else len(header)
    data = b"" if damage == "cut" else bytes(8)
    (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + header + data)

    with pytest.raises(BadArtifact, match="cannot be read") as caught:
        read_weights(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
