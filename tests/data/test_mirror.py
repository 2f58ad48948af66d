import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from moto.server import ThreadedMotoServer

from pd_core.core.errors import BadData, BadParams, MissingFile, PdError
from pd_core.data.acquire.download import Part
from pd_core.data.acquire.mirror import Mirror, has, open_mirror, pull, push

CONTENT = random.Random(0).randbytes(13 * 2**20)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
PART = 5 * 2**20  # S3's smallest
PATH = "archives/dtd/dtd.tar.gz"
SECRET = "very-secret-value"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def mirror(endpoint: str, request: pytest.FixtureRequest) -> Mirror:
    bucket = f"bucket-{abs(hash(request.node.name))}"
    opened = at(endpoint, f"s3://{bucket}/some/prefix/")
    opened.client.create_bucket(Bucket=bucket)
    return opened


def at(endpoint: str, location: str | None) -> Mirror:
    return open_mirror(location, endpoint=endpoint, access_key="id", secret_key=SECRET)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "dtd.tar.gz").write_bytes(CONTENT)
    return tmp_path / "dtd.tar.gz"


class Interrupting:
    """A client that stops before the n-th part, as a killed process does."""

    def __init__(self, client: Any, after: int) -> None:
        self._client = client
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upload_part(self, **arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._client.upload_part(**arguments)


class Counting(Interrupting):
    """A client that counts the parts it sends."""

    def __init__(self, client: Any) -> None:
        super().__init__(client, 1000)

    @property
    def sent(self) -> int:
        return 1000 - self._left


def with_client(mirror: Mirror, client: Any) -> Mirror:
    return Mirror(client, mirror.bucket, mirror.prefix, mirror.endpoint)


@pytest.mark.parametrize("part_size", [PART, 64 * 2**20], ids=["in parts", "at once"])
def test_a_file_goes_to_the_mirror_and_comes_back(
    part_size: int, mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    assert not has(mirror, PATH)
    assert push(mirror, file, PATH, part_size=part_size)
    assert has(mirror, PATH)

    assert pull(mirror, PATH, tmp_path / "new" / "dtd.tar.gz", checksums=(CHECKSUM,))

    assert (tmp_path / "new" / "dtd.tar.gz").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["dtd.tar.gz"]


def test_the_object_carries_its_checksum_and_s3_has_those_of_the_parts(
    mirror: Mirror, file: Path
) -> None:
    push(mirror, file, PATH, part_size=PART)

    head = mirror.client.head_object(
        Bucket=mirror.bucket, Key=f"some/prefix/{PATH}", ChecksumMode="ENABLED"
    )
    assert head["Metadata"] == {"sha256": CHECKSUM.removeprefix("sha256:")}
    assert head["ETag"].endswith('-3"')
    assert head["ChecksumSHA256"]


def test_what_is_there_is_not_sent_or_fetched_again(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    push(mirror, file, PATH)

    assert not push(mirror, file, PATH)
    assert not pull(mirror, PATH, file)
    file.write_bytes(b"another")
    assert push(mirror, file, PATH)
    assert pull(mirror, PATH, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"another"


def test_an_interrupted_push_goes_on_with_the_parts_that_are_missing(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        push(with_client(mirror, Interrupting(mirror.client, 2)), file, PATH, part_size=PART)
    counting = Counting(mirror.client)

    assert push(with_client(mirror, counting), file, PATH, part_size=PART)

    assert counting.sent == 1
    pull(mirror, PATH, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dtd.tar.gz", "new"]


def test_after_a_change_an_interrupted_push_begins_anew(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        push(with_client(mirror, Interrupting(mirror.client, 2)), file, PATH, part_size=PART)
    file.write_bytes(CONTENT[::-1])

    assert push(mirror, file, PATH, part_size=PART)

    pull(mirror, PATH, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == CONTENT[::-1]


def test_an_upload_that_the_server_forgot_begins_anew(mirror: Mirror, file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        push(with_client(mirror, Interrupting(mirror.client, 2)), file, PATH, part_size=PART)
    key = mirror.key(PATH)
    (upload,) = mirror.client.list_multipart_uploads(Bucket=mirror.bucket)["Uploads"]
    mirror.client.abort_multipart_upload(Bucket=mirror.bucket, Key=key, UploadId=upload["UploadId"])

    assert push(mirror, file, PATH, part_size=PART)


def test_an_interrupted_pull_goes_on(mirror: Mirror, file: Path, tmp_path: Path) -> None:
    push(mirror, file, PATH)
    target = tmp_path / "new"
    part = Part(target)
    etag = mirror.client.head_object(Bucket=mirror.bucket, Key=mirror.key(PATH))["ETag"]
    part.begin(f"s3://{mirror.bucket}/{mirror.key(PATH)}", etag)
    part.file.write_bytes(CONTENT[: 10 * 2**20])
    progress: list[tuple[int, int]] = []

    pull(mirror, PATH, target, on_progress=lambda *step: progress.append(step))

    assert target.read_bytes() == CONTENT
    assert progress[0][0] > 10 * 2**20


def test_a_pull_begins_anew_if_the_object_changed(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    push(mirror, file, PATH)
    part = Part(tmp_path / "new")
    part.begin(f"s3://{mirror.bucket}/{mirror.key(PATH)}", '"of another version"')
    part.file.write_bytes(bytes(10 * 2**20))

    pull(mirror, PATH, tmp_path / "new")

    assert (tmp_path / "new").read_bytes() == CONTENT


def test_a_corrupted_object_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.client.put_object(
        Bucket=mirror.bucket, Key=mirror.key(PATH), Body=b"corrupted",
        Metadata={"sha256": CHECKSUM.removeprefix("sha256:")},
    )  # fmt: skip

    with pytest.raises(BadData, match=f"could not pull .*: checksum .* where {CHECKSUM} belongs"):
        pull(mirror, PATH, tmp_path / "new")

    assert not list(tmp_path.iterdir())


def test_an_object_that_is_not_the_origins_file_is_refused(
    mirror: Mirror, file: Path, tmp_path: Path
) -> None:
    push(mirror, file, PATH)

    with pytest.raises(BadData, match="is not the file that its origin has"):
        pull(mirror, PATH, tmp_path / "new", checksums=("md5:" + "0" * 32,))

    assert not (tmp_path / "new").exists()


def test_an_object_without_any_checksum_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.client.put_object(Bucket=mirror.bucket, Key=mirror.key(PATH), Body=CONTENT)

    with pytest.raises(BadData, match="carries no checksum"):
        pull(mirror, PATH, tmp_path / "new")

    assert pull(mirror, PATH, tmp_path / "new", checksums=(CHECKSUM,))


def test_what_the_mirror_lacks_is_named(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"has no 'archives/dtd/dtd.tar.gz'; push it"):
        pull(mirror, PATH, tmp_path / "new")


def test_a_bucket_that_is_not_there_is_named(endpoint: str, file: Path) -> None:
    nowhere = at(endpoint, "s3://nowhere/prefix")

    with pytest.raises(MissingFile, match=f"no bucket 'nowhere' at {endpoint}; make it"):
        push(nowhere, file, PATH)
    with pytest.raises(MissingFile, match="no bucket 'nowhere'"):
        pull(nowhere, PATH, file)


def test_missing_rights_are_named_without_the_secret(
    mirror: Mirror, endpoint: str, file: Path
) -> None:
    # The server checks rights from the next request on; nobody has any there.
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=5)
    try:
        with pytest.raises(PdError, match=r"no rights for s3://.*; check PD_S3") as caught:
            push(mirror, file, PATH)
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=5)

    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named(file: Path) -> None:
    closed = "http://127.0.0.1:9"

    mirror = open_mirror(
        "s3://bucket", endpoint=closed, access_key="id", secret_key=SECRET, attempts=1
    )

    with pytest.raises(PdError, match=f"{closed} does not answer; check PD_S3_ENDPOINT_URL"):
        push(mirror, file, PATH)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (None, "PD_MIRROR is not set; set it to s3://<bucket>/<prefix>"),
        ("https://host/bucket", "PD_MIRROR is 'https://host/bucket'; set it to s3://"),
        ("s3://", "PD_MIRROR is 's3://'"),
    ],
)
def test_a_missing_or_malformed_location_is_refused(location: str | None, message: str) -> None:
    with pytest.raises(BadParams, match=message):
        open_mirror(location)


def test_a_malformed_endpoint_is_refused() -> None:
    with pytest.raises(BadParams, match="PD_S3_ENDPOINT_URL is 'localhost', no address"):
        open_mirror("s3://bucket", endpoint="localhost")


def test_without_credentials_the_message_says_which(
    endpoint: str, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(BadParams, match="no credentials for S3; set PD_S3_ACCESS_KEY_ID"):
        push(open_mirror("s3://bucket", endpoint=endpoint), file, PATH)
