"""Downloaded archives, imported checkpoints and weights: corrupt, hostile, or of another kind."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_files import tarred, zipped
from corruption import (
    WRONG,
    Case,
    Change,
    check_line,
    contents,
    copied,
    in_process,
    promptkd,
    put,
    refused,
    replaced,
    shortened,
    turned,
)
from file_server import file_server
from origins import ARCHIVES, served

from pd_core.core.errors import BadArtifact, BadData
from pd_core.data.acquire import sources
from pd_core.data.acquire.sources import source_of
from pd_core.models.clip import load_clip
from pd_core.models.embedded import embedded_weights

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize("name", ["hostile", "cut", "page", "zeros"])
def test_a_corrupted_archive_from_a_server_leaves_nothing(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = ARCHIVES["dtd"]["dtd-r1.0.1.tar.gz"]
    sent = {**WRONG, "hostile": tarred({"../../out": b""}), "cut": whole[:-20]}[name]
    project = copied(tmp_path_factory.getbasetemp(), tmp_path)
    with file_server() as server, pytest.MonkeyPatch.context() as change, in_process():
        archives = {**ARCHIVES["dtd"], "dtd-r1.0.1.tar.gz": sent}
        row = served(source_of("dtd"), archives, server)
        change.setitem(sources._BY_NAME, "dtd", row)
        (project / "data" / "raw" / "archives" / "dtd").mkdir(parents=True)
        before = contents(project.parent)
        check_line(promptkd(project, "data", "fetch", "dtd"), "data set 'dtd'")
        after = contents(project.parent)
    new = {path for path in after if after[path] != before.get(path)}
    assert all(path.startswith("project/data/raw/archives/dtd/") for path in new)


def _state() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"prompt_learner.ctx": torch.ones(2, 32)}, "epoch": 20}, file)
    return file.getvalue()


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("../touched"),)


def _hostile() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": _Hostile(), "epoch": 20}, file)
    return file.getvalue()


def _foreign() -> Iterator[Case]:
    file = Path("model.pth.tar-20")
    contents: dict[str, bytes] = {
        **{f"cut at {share}": _state()[: int(share * len(_state()))] for share in (0.1, 0.5, 0.95)},
        **{f"a bit at {share}": turned(share, 2)(_state()) for share in (0.0, 0.12, 0.3, 0.97)},
        **WRONG,
        "hostile": _hostile(),
        "legacy": pickle.dumps({"state_dict": {}}),
        "hostile and legacy": pickle.dumps(_Hostile()),
        "a zip of pictures": zipped({"a.png": b"1"}),
        "of another model": _state(),
    }
    for verb in ("import-teacher", "import-student"):
        for name, data in contents.items():
            yield Case(f"{verb}: {name}", put(file, data), (verb, file.name), file.name)
        yield Case(f"{verb}: a folder", lambda p: (p / file).mkdir(), (verb, file.name), file.name)


test_corrupt_checkpoints_of_the_published_code_are_refused = refused(_foreign())


WEIGHTS: dict[str, Change] = {
    **{f"cut at {share}": shortened(share) for share in (0.0, 0.001, 0.5, 0.999)},
    **{f"a bit at {share}": turned(share, 6) for share in (0.0, 0.0005, 0.1, 0.5, 0.9999)},
    **{kind: replaced(data) for kind, data in WRONG.items()},
}


# Without checksums, flipped bits of the data cannot be detected.
ALONE = [name for name in WEIGHTS if not name.startswith("a bit at") or name == "a bit at 0.0"]


@pytest.mark.parametrize(
    ("name", "with_sums"),
    [*((name, True) for name in WEIGHTS), *((name, False) for name in ALONE)],
)
def test_corrupted_weights_are_refused(name: str, with_sums: bool, tmp_path: Path) -> None:
    shipped = embedded_weights("embedded-student")
    path = tmp_path / shipped.name
    path.write_bytes(WEIGHTS[name](shipped.read_bytes()))
    if with_sums:
        (tmp_path / "SHA256SUMS").write_bytes((shipped.parent / "SHA256SUMS").read_bytes())

    with pytest.raises((BadArtifact, BadData), match=shipped.name) as refusal:
        load_clip("embedded-student", path)

    assert "\n" not in str(refusal.value)
