"""Our own copy of the archives on S3, so that GPU machines need not go to the origin.

An object carries the SHA-256 of its content as metadata (`sha256`). Uploads go in parts: what is
needed to go on after an interruption is in `<name>.upload.json` beside the file. S3 is given the
SHA-256 of every part, which servers that know it check; others ignore it.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pd_core.core.errors import BadData, BadParams, MissingFile, PdError
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.download import Interrupted, Part, Refused, Stream, digest

PART_SIZE = 64 * 2**20
"""Bytes; S3 takes parts from 5 MiB on, and 10,000 of them."""
_MOST_PARTS = 10_000
_BLOCK = 2**20
_LOCATION = re.compile(r"s3://(?P<bucket>[^/]+)/?(?P<prefix>.*)")
_NO_RIGHTS = frozenset(
    ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
)


@dataclass(frozen=True)
class Mirror:
    """Where the copies are."""

    client: Any  # boto3's
    bucket: str
    prefix: str  # what all keys start with; empty, or ends with a slash
    endpoint: str  # for messages

    def key(self, path: str) -> str:
        """Return the key of a file whose path below the data root is given."""
        return self.prefix + path


def open_mirror(
    location: str | None,
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    attempts: int = 4,
) -> Mirror:
    """Make a mirror ready; nothing is asked of the server yet.

    Args:
        location: `s3://bucket/prefix`.
        endpoint: The server; None for Amazon's.
        access_key: Credential; None to let boto3 look for its own.
        secret_key: Credential; None to let boto3 look for its own.
        attempts: How often a request is made while the server fails.

    Raises:
        BadParams: The location or the endpoint is missing or malformed.
    """
    match = _LOCATION.fullmatch(location or "")
    if match is None:
        given = f"PD_MIRROR is '{location}'" if location else "PD_MIRROR is not set"
        raise BadParams(f"no mirror: {given}; set it to s3://<bucket>/<prefix>")
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=15,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": attempts},
        request_checksum_calculation="when_required",  # not every server knows the newest kinds
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
    )
    try:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
    except ValueError:
        raise BadParams(
            f"PD_S3_ENDPOINT_URL is '{endpoint}', no address of a server; write https://<host>"
        ) from None
    prefix = match["prefix"].strip("/")
    return Mirror(client, match["bucket"], f"{prefix}/" if prefix else "", client.meta.endpoint_url)


def push(
    mirror: Mirror,
    file: Path,
    path: str,
    *,
    part_size: int = PART_SIZE,
    on_progress: OnProgress | None = None,
) -> bool:
    """Upload a file, unless the mirror has it already; return whether it was uploaded.

    Args:
        mirror: Where to.
        file: What.
        path: Its path below the data root.
        part_size: Bytes of a part; doubled until the file has few enough of them.
        on_progress: Called with bytes done and bytes in all.

    Raises:
        PdError: The server cannot be reached, has no such bucket, or refuses.
    """
    key, size = mirror.key(path), file.stat().st_size
    checksum = digest(file, "sha256")
    while size > part_size * _MOST_PARTS:
        part_size *= 2
    with _explained(mirror, key):
        there = _head(mirror, key)
        if there is not None and (there.size, there.sha256) == (size, checksum):
            return False
        if size <= part_size:
            body = file.read_bytes()
            mirror.client.put_object(
                Bucket=mirror.bucket, Key=key, Body=body, ChecksumSHA256=_encoded(body),
                Metadata={"sha256": checksum.partition(":")[2]},
            )  # fmt: skip
        else:
            _push_parts(mirror, file, key, checksum, part_size, on_progress)
    return True


def pull(
    mirror: Mirror,
    path: str,
    target: Path,
    *,
    checksums: tuple[str, ...] = (),
    on_progress: OnProgress | None = None,
) -> bool:
    """Download a file, unless it is here already; return whether it was downloaded.

    Args:
        mirror: Where from.
        path: Its path below the data root.
        target: Where it goes.
        checksums: What it may have according to its origin; empty if that is not known.
        on_progress: Called with bytes done and bytes in all.

    Raises:
        MissingFile: The mirror has no such file.
        BadData: What came is not what was uploaded, or not what the origin has.
        PdError: As `push`.
    """
    key = mirror.key(path)
    with _explained(mirror, key):
        there = _head(mirror, key)
        if there is None:
            raise MissingFile(
                f"the mirror s3://{mirror.bucket}/{mirror.prefix} has no '{path}'; push it from a "
                "machine that has it, or fetch it from its origin"
            )
        source = f"s3://{mirror.bucket}/{key}"
        if not there.sha256 and not checksums:
            raise BadData(f"'{source}' carries no checksum; upload it with `mirror push`")
        if target.is_file() and digest(target, "sha256") == there.sha256:
            return False
        try:
            Part(target).receive(
                partial(_open_object, mirror, key, there),
                source,
                there.sha256,
                on_progress=on_progress,
            )
        except (Interrupted, Refused) as error:
            raise BadData(f"could not pull '{source}': {error}; push it again") from None
    if checksums and all(digest(target, known) != known for known in checksums):
        target.unlink()
        raise BadData(
            f"'{source}' is not the file that its origin has: its checksum is none of "
            f"{', '.join(checksums)}; remove it from the mirror and push the right one"
        )
    return True


def has(mirror: Mirror, path: str) -> bool:
    """Whether the mirror has a file whose path below the data root is given; raises as `push`."""
    key = mirror.key(path)
    with _explained(mirror, key):
        return _head(mirror, key) is not None


@dataclass(frozen=True)
class _Object:
    """What the mirror says of a file; `sha256` is a checksum, or empty."""

    size: int
    sha256: str
    etag: str


def _head(mirror: Mirror, key: str) -> _Object | None:
    from botocore.exceptions import ClientError

    try:
        answer = mirror.client.head_object(Bucket=mirror.bucket, Key=key)
    except ClientError as error:
        if _code(error) not in ("404", "NoSuchKey"):
            raise
        mirror.client.head_bucket(Bucket=mirror.bucket)  # says 404 as well if there is none
        return None
    digits = answer["Metadata"].get("sha256", "")
    return _Object(
        int(answer["ContentLength"]), f"sha256:{digits}" if digits else "", answer["ETag"]
    )


def _push_parts(
    mirror: Mirror,
    file: Path,
    key: str,
    checksum: str,
    part_size: int,
    on_progress: OnProgress | None,
) -> None:
    state = file.with_name(f"{file.name}.upload.json")
    plan = {"bucket": mirror.bucket, "key": key, "checksum": checksum, "part_size": part_size}
    upload, parts = _unfinished(mirror, state, plan)
    if upload is None:
        upload = mirror.client.create_multipart_upload(
            Bucket=mirror.bucket, Key=key, ChecksumAlgorithm="SHA256",
            Metadata={"sha256": checksum.partition(":")[2]},
        )["UploadId"]  # fmt: skip
        state.write_text(json.dumps({**plan, "upload": upload}))
    where = {"Bucket": mirror.bucket, "Key": key, "UploadId": upload}
    size = file.stat().st_size
    with file.open("rb") as stream:
        for number, start in enumerate(range(0, size, part_size), start=1):
            if number not in parts:
                stream.seek(start)
                body = stream.read(part_size)
                sha256 = _encoded(body)
                answer = mirror.client.upload_part(
                    **where, PartNumber=number, Body=body, ChecksumSHA256=sha256
                )
                parts[number] = {"ETag": answer["ETag"], "ChecksumSHA256": sha256}
            if on_progress is not None:
                on_progress(min(start + part_size, size), size)
    listed = [{"PartNumber": number, **parts[number]} for number in sorted(parts)]
    mirror.client.complete_multipart_upload(**where, MultipartUpload={"Parts": listed})
    state.unlink()


def _unfinished(
    mirror: Mirror, state: Path, plan: dict[str, Any]
) -> tuple[str | None, dict[int, dict[str, str]]]:
    """Return the upload that an earlier run began by the same plan, and its parts."""
    from botocore.exceptions import ClientError

    try:
        noted = json.loads(state.read_text())
        upload = noted.pop("upload")
    except (OSError, ValueError, AttributeError, KeyError):
        return None, {}
    if noted != plan:
        return None, {}
    pages = mirror.client.get_paginator("list_parts").paginate(
        Bucket=mirror.bucket, Key=plan["key"], UploadId=upload
    )
    try:
        found = [part for page in pages for part in page.get("Parts", [])]
    except ClientError as error:
        if _code(error) == "NoSuchUpload":
            return None, {}
        raise
    kept = ("ETag", "ChecksumSHA256")
    return upload, {
        part["PartNumber"]: {name: part[name] for name in kept if name in part} for part in found
    }


def _open_object(mirror: Mirror, key: str, there: _Object, start: int, validator: str) -> Stream:
    """Ask for the bytes of one version of an object, from `start` on if the part is of it."""
    if validator != there.etag or start > there.size:
        start = 0
    if 0 < start == there.size:
        return Stream(start, there.size, there.etag, iter(()))
    answer = mirror.client.get_object(
        Bucket=mirror.bucket, Key=key, Range=f"bytes={start}-", IfMatch=there.etag
    )
    return Stream(start, there.size, there.etag, _blocks(answer["Body"]))


def _blocks(body: Any) -> Iterator[bytes]:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        yield from body.iter_chunks(_BLOCK)
    except (BotoCoreError, HTTPError) as error:
        raise Interrupted(str(error)) from None
    finally:
        body.close()


def _encoded(body: bytes) -> str:
    return b64encode(hashlib.sha256(body).digest()).decode()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _explained(mirror: Mirror, key: str) -> Iterator[None]:
    """Turn boto3's exceptions into one line each; none of them repeats a secret."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = _code(error)
        if code in ("404", "NoSuchBucket"):
            raise MissingFile(
                f"no bucket '{mirror.bucket}' at {mirror.endpoint}; make it, or correct PD_MIRROR "
                "or PD_S3_ENDPOINT_URL"
            ) from None
        if code in _NO_RIGHTS:
            raise PdError(
                f"no rights for s3://{mirror.bucket}/{key} at {mirror.endpoint} ({code}); check "
                "PD_S3_ACCESS_KEY_ID, PD_S3_SECRET_ACCESS_KEY and the bucket's policy"
            ) from None
        raise PdError(
            f"{mirror.endpoint} refused s3://{mirror.bucket}/{key}: {error.operation_name}, {code}"
        ) from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError):
        raise BadParams(
            "no credentials for S3; set PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY, or what "
            "boto3 reads"
        ) from None
    except (boto.EndpointConnectionError, boto.HTTPClientError):
        raise PdError(
            f"{mirror.endpoint} does not answer; check PD_S3_ENDPOINT_URL and the network"
        ) from None
    except boto.BotoCoreError as error:
        raise PdError(f"s3://{mirror.bucket}/{key} at {mirror.endpoint}: {error}") from None
