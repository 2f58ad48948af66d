"""`promptkd new` takes the weights of a tag from the mirror, or refuses with three remedies."""

from pathlib import Path

import open_clip
import photos
import pytest
import tiny
import torch
from command import promptkd
from s3_server import client, endpoint

from pd_core.models.clip import load_clip
from pd_core.pipeline.stages.params import load_params

__all__ = ["endpoint"]  # a fixture

FILE = "tiny.mine.safetensors"
NEW = (
    "new", "digits", "--labelled", "photos/labelled", "--unlabelled", "photos/unlabelled",
    "--teacher", "tiny:mine", "--student", "tiny:mine",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with photos; open_clip has a tiny CLIP whose address does not respond."""
    monkeypatch.delenv("PD_DATA_ROOT", raising=False)
    tiny.register()
    published = {"mine": {"url": f"http://127.0.0.1:9/{FILE}", "hf_hub": ""}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", published)
    monkeypatch.setattr("pd_core.data.acquire.download.time.sleep", lambda _: None)
    photos.write(tmp_path / "photos")
    return tmp_path


@pytest.fixture
def mirror(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Set an empty mirror; return its bucket."""
    bucket = f"bucket-{abs(hash(request.node.name))}"
    client("s3", endpoint).create_bucket(Bucket=bucket)
    monkeypatch.setenv("PD_MIRROR", f"s3://{bucket}/mine")
    monkeypatch.setenv("PD_S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("PD_S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("PD_S3_SECRET_ACCESS_KEY", "secret")
    return bucket


@pytest.mark.usefixtures("mirror")
def test_weights_of_a_tag_come_from_the_mirror(place: Path) -> None:
    other = place / "other" / "weights"
    other.mkdir(parents=True)
    weights = tiny.weights(other, seed=3).rename(other / FILE)
    pushed = promptkd(place, "weights", "mirror", "push", FILE, "--root", "other")
    assert (pushed.returncode, pushed.stdout) == (0, f"{FILE}: pushed\n"), pushed.stderr

    done = promptkd(place, *NEW)
    assert done.returncode == 0, done.stderr
    assert f"{FILE}: pulled" in done.stdout
    project = place / "digits"
    assert (project / "data" / "raw" / "weights" / FILE).read_bytes() == weights.read_bytes()
    params = load_params(project / "params.yaml").for_dataset("digits")
    for block in (params.teacher, params.student):
        assert (block.model, block.weights) == ("tiny", f"data/raw/weights/{FILE}")
        towers = load_clip(block.model, project / str(block.weights))
        images = tiny.images(2)
        assert torch.equal(towers.visual(images), tiny.towers(seed=3).visual(images))
    prepared = promptkd(project, "prepare", "digits")
    assert prepared.returncode == 0, prepared.stderr

    (project / "data" / "raw" / "weights" / FILE).unlink()  # as in a clone
    pulled = promptkd(project, "weights", "mirror", "pull")
    assert (pulled.returncode, pulled.stdout) == (0, f"{FILE}: pulled\n"), pulled.stderr
    checked = promptkd(project, "weights", "verify")
    assert (checked.returncode, checked.stdout) == (
        0, f"{FILE}: is there, and no checksum is known\n",
    )  # fmt: skip


@pytest.mark.parametrize("source", ["an empty mirror", "a tag alone"])
def test_without_them_there_are_three_remedies_and_nothing_is_left(
    source: str, place: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "a tag alone":
        monkeypatch.delenv("PD_MIRROR")
    before = sorted(place.rglob("*"))
    done = promptkd(place, *NEW)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: weights '{FILE}' cannot be had (")
    reason = f"the mirror s3://{mirror}/mine/ has no" if source == "an empty mirror" else "127.0.0"
    assert reason in line
    for remedy in (
        "give a file with --teacher or --student MODEL:FILE",
        "set PD_MIRROR to a mirror that has them",
        "start again where there is a network",
    ):
        assert remedy in line
    assert sorted(place.rglob("*")) == before
