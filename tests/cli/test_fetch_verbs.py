import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from archive_files import tarred, tree, zipped
from file_server import FileServer, server
from filelock import FileLock
from origins import ARCHIVES, LAYOUTS, served
from s3_server import endpoint
from typer import Typer
from typer.testing import CliRunner, Result

from pd_core.cli import data as cli_data
from pd_core.core.errors import BadData, BadParams, MissingFile, PdError, UnknownName
from pd_core.data.acquire import sources
from pd_core.data.acquire import sources as clip_weights
from pd_core.data.acquire.sources import Address, Origin, RemoteFile, source_of

__all__ = ["endpoint", "server"]  # fixtures

DTD = ARCHIVES["dtd"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder whose data root is `data/raw`."""
    monkeypatch.chdir(tmp_path)
    for variable in ("PD_DATA_ROOT", "PD_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def dtd(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Put a miniature of DTD on a server of ours in place of the origin."""
    monkeypatch.setitem(sources._BY_NAME, "dtd", served(source_of("dtd"), DTD, server))
    return server


@pytest.fixture
def clip(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Put small files on a server of ours in place of OpenAI's weights."""
    for name in clip_weights.weight_names():
        content = name.encode() * 1000
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        address = Address(server.url(name), Origin.REPORTED, checksum)
        server.add(name, content)
        monkeypatch.setitem(clip_weights._CLIP_ROWS, name, RemoteFile(name, (address,)))
    return server


@pytest.fixture
def mirror(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    bucket = f"bucket-{abs(hash(request.node.name))}"
    monkeypatch.setenv("PD_MIRROR", f"s3://{bucket}/mine")
    monkeypatch.setenv("PD_S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("PD_S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("PD_S3_SECRET_ACCESS_KEY", "secret")
    cli_data.mirror().client.create_bucket(Bucket=bucket)


def run(app: Typer, *arguments: str) -> Result:
    """Run a verb; a PdError is left to the caller, as the command line leaves it to `main`."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def data(*arguments: str) -> Result:
    return run(cli_data.app, *arguments)


def weights(*arguments: str) -> Result:
    return run(cli_data.weights, *arguments)


def placed(root: Path) -> set[str]:
    return {path for path in tree(root) if not path.startswith("archives/")}


def test_a_data_set_is_fetched_into_data_raw_and_says_what_it_did(
    dtd: FileServer, place: Path
) -> None:
    result = data("fetch", "dtd")

    assert placed(place / "data" / "raw") == LAYOUTS["dtd"]
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert dtd.url("dtd-r1.0.1.tar.gz") in lines[1]
    assert "unverified: sha256 from users' reports" in lines[1]


@pytest.mark.usefixtures("dtd")
def test_the_data_root_is_an_option_then_the_environment_then_the_profiles(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Path(__file__).parents[2] / "paper" / "params.yaml"
    (place / "paper").mkdir()
    shutil.copy(paper, place / "paper" / "params.yaml")
    monkeypatch.chdir(place / "paper")

    data("fetch", "dtd")
    assert placed(place / "data" / "raw") == LAYOUTS["dtd"]
    monkeypatch.setenv("PD_DATA_ROOT", str(place / "environment"))
    data("fetch", "dtd")
    assert placed(place / "environment") == LAYOUTS["dtd"]
    data("fetch", "dtd", "--root", str(place / "option"))
    assert placed(place / "option") == LAYOUTS["dtd"]


def test_a_deleted_folder_is_unpacked_again_and_nothing_is_downloaded_twice(
    dtd: FileServer, place: Path
) -> None:
    data("fetch", "dtd")
    assert data("fetch", "dtd").stdout == ""
    shutil.rmtree(place / "data" / "raw" / "dtd")

    data("fetch", "dtd")

    assert placed(place / "data" / "raw") == LAYOUTS["dtd"]
    assert all(len(file.asked) == 1 for file in dtd.files.values())


def test_archives_put_there_by_hand_are_used_if_they_are_right(
    dtd: FileServer, place: Path
) -> None:
    kept = place / "data" / "raw" / "archives" / "dtd"
    kept.mkdir(parents=True)
    for name, content in DTD.items():
        (kept / name).write_bytes(content)
    (kept / "split_zhou_DescribableTextures.json").write_bytes(b"wrong")

    data("fetch", "dtd")

    assert placed(place / "data" / "raw") == LAYOUTS["dtd"]
    assert not dtd.files["dtd-r1.0.1.tar.gz"].asked
    assert dtd.files["split_zhou_DescribableTextures.json"].asked


def test_plain_files_come_first_so_that_nothing_large_comes_in_vain(dtd: FileServer) -> None:
    del dtd.files["split_zhou_DescribableTextures.json"]

    with pytest.raises(BadData, match="split_zhou_DescribableTextures.json.*status 404"):
        data("fetch", "dtd")

    assert not dtd.files["dtd-r1.0.1.tar.gz"].asked


def test_another_route_is_taken_if_the_first_fails(
    dtd: FileServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del dtd.files["dtd-r1.0.1.tar.gz"]
    copy = source_of("dtd")
    whole = zipped(
        {
            "dtd/images/banded/banded_0002.jpg": b"b",
            "dtd/split_zhou_DescribableTextures.json": b"{}",
        }
    )
    dtd.add("copy", whole)
    (second,) = _second_route()
    second = replace(second, addresses=(Address(dtd.url("copy"), Origin.AUTHORS),))
    monkeypatch.setitem(sources._BY_NAME, "dtd", replace(copy, routes=(*copy.routes, (second,))))

    result = data("fetch", "dtd")

    assert placed(place / "data" / "raw") == LAYOUTS["dtd"]
    assert "unverified: no checksum known, address from the repository of the" in result.stdout


def _second_route() -> tuple[RemoteFile, ...]:
    return next(row for row in sources._ROWS if row.name == "dtd").routes[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tarred({"../../out": b""}), "leads out of the folder"),
        (DTD["dtd-r1.0.1.tar.gz"][:-20], "damaged or cut off"),
        (tarred({"other/1.jpg": b""}), "has no 'dtd', but other"),
    ],
    ids=["leads out", "cut off", "other folder"],  # their bytes hold the time
)
def test_after_a_bad_archive_nothing_half_written_remains(
    content: bytes, message: str, dtd: FileServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {**DTD, "dtd-r1.0.1.tar.gz": content}
    monkeypatch.setitem(sources._BY_NAME, "dtd", served(source_of("dtd"), contents, dtd))
    data_root = place / "data" / "raw"
    (data_root / ".unpacking-dtd-dtd-r1.0.1.tar.gz").mkdir(parents=True)
    (data_root / ".unpacking-dtd-dtd-r1.0.1.tar.gz" / "of a killed run").touch()

    with pytest.raises(BadData, match=message):
        data("fetch", "dtd")

    assert {path.name for path in data_root.iterdir()} == {"archives"}


@pytest.mark.usefixtures("dtd")
def test_a_root_that_is_locked_or_cannot_be_made_is_refused(place: Path) -> None:
    kept = place / "data" / "raw" / "archives" / "dtd"
    kept.mkdir(parents=True)
    with FileLock(kept / ".lock"), pytest.raises(PdError, match="another process is fetching"):
        data("fetch", "dtd")

    (place / "taken").touch()
    with pytest.raises(PdError, match="cannot write '.*taken/archives/dtd'"):
        data("fetch", "dtd", "--root", str(place / "taken"))


def test_a_wrong_name_is_refused_before_anything_is_fetched(dtd: FileServer) -> None:
    with pytest.raises(UnknownName, match="did you mean 'eurosat'"):
        data("fetch", "dtd", "eurosta")
    with pytest.raises(BadParams, match="'embedded_greek': it is built from installed packages"):
        data("fetch", "dtd", "embedded_greek")

    with pytest.raises(MissingFile, match="https://image-net.org.*ln -s "):
        data("fetch", "imagenet")
    assert not any(file.asked for file in dtd.files.values())


def test_the_plan_shows_addresses_and_how_far_to_trust_them(place: Path) -> None:
    shown = data("fetch", "--plan", "dtd", "imagenet").stdout

    assert "download/dtd-r1.0.1.tar.gz (md5 as in torchvision)" in shown
    assert "(unverified: no checksum known, address from CoOp's DATASETS.md)" in shown
    assert "by hand: ImageNet cannot be downloaded freely" in shown
    assert not list(place.iterdir())


@pytest.mark.usefixtures("mirror")
def test_a_data_set_goes_through_the_mirror(dtd: FileServer, place: Path) -> None:
    with pytest.raises(MissingFile, match="run `promptkd data fetch dtd`"):
        data("mirror", "push", "dtd")
    with pytest.raises(
        MissingFile, match="does not have 'dtd'; run `promptkd data mirror push dtd`"
    ):
        data("mirror", "pull", "dtd")
    data("fetch", "dtd")
    assert data("mirror", "push", "dtd").stdout.count("pushed") == 2
    assert data("mirror", "push", "dtd").stdout.count("on the mirror already") == 2

    result = data("mirror", "pull", "dtd", "--root", str(place / "other"))

    assert placed(place / "other") == LAYOUTS["dtd"]
    assert result.stdout.count("pulled") == 2
    assert data("mirror", "pull", "dtd", "--root", str(place / "other")).stdout == ""
    assert all(len(file.asked) == 1 for file in dtd.files.values())


@pytest.mark.usefixtures("dtd")
def test_without_a_mirror_the_error_names_its_setting() -> None:
    data("fetch", "dtd")
    with pytest.raises(BadParams, match="PD_MIRROR is not set"):
        data("mirror", "push", "dtd")


def test_weights_are_fetched_verified_and_found_damaged(clip: FileServer, place: Path) -> None:
    assert weights("verify").exit_code == 1
    result = weights("fetch")
    assert result.stdout.count("fetched from") == len(clip.files)
    assert weights("verify").exit_code == 0
    assert weights("fetch").stdout.count("here already") == len(clip.files)
    (place / "data" / "raw" / "weights" / "ViT-B-16.pt").write_bytes(b"damaged")

    damaged = weights("verify", "--json")

    assert damaged.exit_code == 1
    first, second, _ = json.loads(damaged.stdout)
    assert (first["name"], first["ok"]) == ("ViT-B-16.pt", False)
    assert "expected sha256:" in first["problem"]
    assert (second["name"], second["ok"], second["problem"]) == ("ViT-L-14.pt", True, "")
    weights("fetch", "ViT-B-16.pt")
    assert weights("verify").exit_code == 0
    assert all(file.asked for file in clip.files.values())


def test_the_weights_of_the_profile_are_the_default(clip: FileServer, place: Path) -> None:
    paper = Path(__file__).parents[2] / "paper" / "params.yaml"
    text = paper.read_text().replace("ViT-L-14.pt", "of-our-own.pt")
    (place / "params.yaml").write_text(text.replace("root: ..", "root: ."))

    weights("fetch")

    assert [path.name for path in (place / "data" / "raw" / "weights").iterdir()] == ["ViT-B-16.pt"]
    assert not clip.files["ViT-L-14.pt"].asked


def test_the_weights_of_further_teachers_are_among_the_profiles(place: Path) -> None:
    follow_up = Path(__file__).parents[2] / "paper" / "the_professor" / "params.yaml"
    (place / "params.yaml").write_text(follow_up.read_text().replace("root: ../..", "root: ."))

    rows = json.loads(weights("verify", "--json").stdout)

    assert [row["name"] for row in rows] == [
        "EVA02-L-14.merged2b_s4b_b131k.safetensors", "ViT-B-16.pt", "ViT-L-14.pt",
    ]  # fmt: skip


@pytest.mark.usefixtures("mirror")
def test_weights_go_through_the_mirror(clip: FileServer, place: Path) -> None:
    with pytest.raises(BadData, match="weights '.*ViT-B-16.pt': not found"):
        weights("mirror", "push")
    weights("fetch")
    assert weights("mirror", "push").stdout.count("pushed") == len(clip.files)

    weights("mirror", "pull", "--root", str(place / "other"))

    assert weights("verify", "--root", str(place / "other")).exit_code == 0
    assert all(len(file.asked) == 1 for file in clip.files.values())
