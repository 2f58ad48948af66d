import hashlib
import random
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError
from s3_server import endpoint

from pd_core.core.errors import BadData, BadParams, MissingFile, PdError
from pd_core.data.acquire.download import Part
from pd_core.data.acquire.mirror import Mirror, open_mirror

__all__ = ["endpoint"]  # fixtures

CONTENT = random.Random(0).randbytes(13 * 2**20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PART = 5 * 2**20  # S3's smallest
PATH = "archives/dtd/dtd.tar.gz"
SECRET = "very-secret-value"


@pytest.fixture
def mirror(endpoint: str, request: pytest.FixtureRequest) -> Mirror:
    bucket = f"bucket-{abs(hash(request.node.name))}"
    opened = at(endpoint, f"s3://{bucket}/some/prefix/")
    opened.client.create_bucket(Bucket=bucket)
    return opened


def at(endpoint: str, location: str | None) -> Mirror:
    return open_mirror(location, endpoint=endpoint, access_key="id", secret_key=SECRET, attempts=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "dtd.tar.gz").write_bytes(CONTENT)
    return tmp_path / "dtd.tar.gz"


def put(mirror: Mirror, content: bytes, **metadata: str) -> None:
    """Upload an object by other means than `push`."""
    key = mirror.prefix + PATH
    mirror.client.put_object(Bucket=mirror.bucket, Key=key, Body=content, Metadata=metadata)


@pytest.mark.parametrize("part_size", [PART, 64 * 2**20], ids=["in parts", "at once"])
def test_a_file_is_pushed_and_pulled(
    part_size: int, mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    progress: list[tuple[int, int]] = []
    assert not mirror.has(PATH)
    assert mirror.push(
        file, PATH, part_size=part_size, on_progress=lambda *step: progress.append(step)
    )
    assert mirror.has(PATH)
    assert progress[-1] == (len(CONTENT), len(CONTENT))

    target = tmp_path / "new" / "dtd.tar.gz"
    assert mirror.pull(PATH, target, checksums=(f"sha256:{SHA256}",))

    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["dtd.tar.gz"]


def test_an_object_carries_its_checksum(mirror: Mirror, file: Path) -> None:
    mirror.push(file, PATH, part_size=PART)

    head = mirror.client.head_object(Bucket=mirror.bucket, Key=f"some/prefix/{PATH}")
    assert head["Metadata"] == {"sha256": SHA256}
    assert head["ETag"].endswith('-3"')


def test_every_request_is_signed_over_its_content(mirror: Mirror, file: Path) -> None:
    hashes = []
    mirror.client.meta.events.register(
        "before-send.s3.*",
        lambda request, **_: hashes.append(request.headers["X-Amz-Content-SHA256"]),
    )

    mirror.push(file, PATH)

    assert SHA256.encode() in hashes


def test_equal_files_are_not_transferred_again(mirror: Mirror, file: Path, tmp_path: Path) -> None:
    mirror.push(file, PATH)

    assert not mirror.push(file, PATH)
    assert not mirror.pull(PATH, file)
    file.write_bytes(b"another")
    assert mirror.push(file, PATH)
    assert mirror.pull(PATH, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"another"


def test_an_interrupted_push_leaves_no_object(
    mirror: Mirror, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise ClientError({"Error": {"Code": "InternalError"}}, "UploadPart")

    with monkeypatch.context() as change:
        change.setattr(mirror.client, "upload_part", fail)
        with pytest.raises(PdError, match="refused .*: UploadPart, InternalError"):
            mirror.push(file, PATH, part_size=PART)

    assert not mirror.has(PATH)
    assert "Uploads" not in mirror.client.list_multipart_uploads(Bucket=mirror.bucket)
    assert mirror.push(file, PATH, part_size=PART)


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_pull_is_resumed_unless_the_object_changed(
    changed: bool, mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    mirror.push(file, PATH)
    target, received = tmp_path / "new", 10 * 2**20
    part = Part(target)
    etag = mirror.client.head_object(Bucket=mirror.bucket, Key=mirror.prefix + PATH)["ETag"]
    part.begin(mirror.url(PATH), '"of another version"' if changed else etag)
    part.file.write_bytes(bytes(received) if changed else CONTENT[:received])
    progress: list[int] = []

    mirror.pull(PATH, target, on_progress=lambda done, _: progress.append(done))

    assert target.read_bytes() == CONTENT
    assert (progress[0] > received) is not changed


def test_a_corrupt_object_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    put(mirror, b"corrupt", sha256=SHA256)

    with pytest.raises(BadData, match=f"could not pull .*: checksum .* expected sha256:{SHA256}"):
        mirror.pull(PATH, tmp_path / "new")

    assert not list(tmp_path.iterdir())


def test_an_object_that_is_not_the_file_of_its_origin_is_refused(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    mirror.push(file, PATH)

    with pytest.raises(BadData, match="is not the file of its origin"):
        mirror.pull(PATH, tmp_path / "new", checksums=("md5:" + "0" * 32,))

    assert not (tmp_path / "new").exists()


def test_an_object_needs_a_checksum_of_its_own_or_of_its_origin(
    mirror: Mirror, tmp_path: Path
) -> None:
    put(mirror, CONTENT)

    with pytest.raises(BadData, match="has no checksum"):
        mirror.pull(PATH, tmp_path / "new")

    assert mirror.pull(PATH, tmp_path / "new", checksums=(f"sha256:{SHA256}",))


def test_a_missing_object_or_bucket_is_named(
    mirror: Mirror, endpoint: str, file: Path, tmp_path: Path
) -> None:
    nowhere = at(endpoint, "s3://nowhere/prefix")

    with pytest.raises(MissingFile, match=r"has no 'archives/dtd/dtd.tar.gz'; push it"):
        mirror.pull(PATH, tmp_path / "new")
    with pytest.raises(MissingFile, match=f"no bucket 'nowhere' at {endpoint}; make it"):
        nowhere.push(file, PATH)
    with pytest.raises(MissingFile, match="no bucket 'nowhere'"):
        nowhere.pull(PATH, file)


def test_missing_rights_are_named_without_the_secret(
    mirror: Mirror, endpoint: str, file: Path
) -> None:
    # The server checks rights from the next request on; nobody has any there.
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=5)
    try:
        with pytest.raises(PdError, match=r"no rights for s3://.*; check PD_S3") as caught:
            mirror.push(file, PATH)
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=5)

    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_respond_is_named(file: Path) -> None:
    closed = "http://127.0.0.1:9"

    with pytest.raises(PdError, match=f"{closed} does not respond; check PD_S3_ENDPOINT_URL"):
        at(closed, "s3://bucket").push(file, PATH)


@pytest.mark.parametrize("location", [None, "https://host/bucket", "s3://"])
def test_a_missing_or_malformed_location_is_refused(location: str | None) -> None:
    with pytest.raises(BadParams, match="PD_MIRROR is .*; set it to s3://<bucket>/<prefix>"):
        open_mirror(location)


def test_a_malformed_endpoint_is_refused() -> None:
    with pytest.raises(BadParams, match="PD_S3_ENDPOINT_URL is 'localhost', no address"):
        open_mirror("s3://bucket", endpoint="localhost")


def test_missing_credentials_are_named(
    endpoint: str, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(BadParams, match="no credentials for S3; set PD_S3_ACCESS_KEY_ID"):
        open_mirror("s3://bucket", endpoint=endpoint).push(file, PATH)
