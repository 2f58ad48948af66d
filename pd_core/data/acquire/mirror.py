"""Mirror of the downloaded archives on S3.

An object carries the SHA-256 of its content as metadata (`sha256`), which a download is checked
against. Each request is signed over the SHA-256 of its body, so a server refuses damaged uploads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from pd_core.core.errors import BadData, BadParams, MissingFile, PdError
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.download import Interrupted, Part, Refused, Stream, digest, has_checksum

PART_SIZE = 64 * 2**20
"""Bytes of a part of a multipart upload."""

_BLOCK = 2**20
_LOCATION = re.compile(r"s3://(?P<bucket>[^/]+)/?(?P<prefix>.*)")
_DENIED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


@dataclass(frozen=True)
class Mirror:
    """A bucket's folder that holds copies of files below the data root.

    Its methods raise PdError if the server cannot be reached, has no such bucket, or refuses.

    Attributes:
        client: S3 client of boto3.
        bucket: Name of the bucket.
        prefix: Start of all keys; empty, or ends with a slash.
    """

    client: Any
    bucket: str
    prefix: str

    def url(self, path: str = "") -> str:
        """Return the `s3://` address of a path below the data root."""
        return f"s3://{self.bucket}/{self.prefix}{path}"

    def has(self, path: str) -> bool:
        """True if the mirror has a file."""
        with self._errors(path):
            return self._head(path) is not None

    def push(
        self,
        file: Path,
        path: str,
        *,
        part_size: int = PART_SIZE,
        on_progress: OnProgress | None = None,
    ) -> bool:
        """Upload a file unless the mirror has it already; return True if it was uploaded.

        Args:
            file: Local file.
            path: Its path below the data root.
            part_size: Bytes of a part.
            on_progress: Called with bytes done and total bytes.
        """
        from boto3.s3.transfer import TransferConfig

        checksum, size = digest(file, "sha256"), file.stat().st_size
        with self._errors(path):
            head = self._head(path)
            if head is not None and _checksum(head) == checksum and head["ContentLength"] == size:
                return False
            self.client.upload_file(
                str(file),
                self.bucket,
                self.prefix + path,
                ExtraArgs={"Metadata": {"sha256": checksum.partition(":")[2]}},
                Callback=_counter(size, on_progress) if on_progress else None,
                Config=TransferConfig(multipart_threshold=part_size, multipart_chunksize=part_size),
            )
        return True

    def pull(
        self,
        path: str,
        target: Path,
        *,
        checksums: tuple[str, ...] = (),
        on_progress: OnProgress | None = None,
    ) -> bool:
        """Download a file unless it is there already; return True if it was downloaded.

        Args:
            path: Its path below the data root.
            target: Local file.
            checksums: Checksums that its origin may have; empty if none is known.
            on_progress: Called with bytes done and total bytes.

        Raises:
            MissingFile: The mirror has no such file.
            BadData: Its content is not what was uploaded, or not what the origin has.
        """
        with self._errors(path):
            head = self._head(path)
            if head is None:
                raise MissingFile(
                    f"the mirror {self.url()} has no '{path}'; push it from a machine that has it, "
                    "or fetch it from its origin"
                )
            expected = _checksum(head)
            if not expected and not checksums:
                raise BadData(f"'{self.url(path)}' has no checksum; upload it with `mirror push`")
            if expected and target.is_file() and has_checksum(target, [expected]):
                return False
            open_at = partial(self._open, path, head)
            try:
                Part(target).receive(open_at, self.url(path), expected, on_progress=on_progress)
            except (Interrupted, Refused) as error:
                raise BadData(
                    f"could not pull '{self.url(path)}': {error}; push it again"
                ) from None
        if checksums and not has_checksum(target, checksums):
            target.unlink()
            raise BadData(
                f"'{self.url(path)}' is not the file of its origin: its checksum is none of "
                f"{', '.join(checksums)}; remove it from the mirror and push the right one"
            )
        return True

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            head: dict[str, Any] = self.client.head_object(
                Bucket=self.bucket, Key=self.prefix + path
            )
        except ClientError as error:
            if _code(error) not in ("404", "NoSuchKey"):
                raise
            self.client.head_bucket(Bucket=self.bucket)  # a missing bucket gives 404 as well
            return None
        return head

    def _open(self, path: str, head: dict[str, Any], start: int, validator: str) -> Stream:
        """Open an object at a position, if the partial file is of the same version."""
        etag, size = head["ETag"], int(head["ContentLength"])
        if validator != etag or start > size:
            start = 0
        if 0 < start == size:
            return Stream(start, size, etag, iter(()))
        response = self.client.get_object(
            Bucket=self.bucket, Key=self.prefix + path, Range=f"bytes={start}-", IfMatch=etag
        )
        return Stream(start, size, etag, _blocks(response["Body"]))

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turn boto3's exceptions into one line each; none of them repeats a secret."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto

        endpoint = self.client.meta.endpoint_url
        try:
            try:
                yield
            except S3UploadFailedError as error:  # hides the reason
                raise (error.__cause__ or error.__context__ or error) from None
        except boto.ClientError as error:
            code = _code(error)
            if code in ("404", "NoSuchBucket"):
                raise MissingFile(
                    f"no bucket '{self.bucket}' at {endpoint}; make it, or correct PD_MIRROR or "
                    "PD_S3_ENDPOINT_URL"
                ) from None
            if code in _DENIED:
                raise PdError(
                    f"no rights for {self.url(path)} at {endpoint} ({code}); check "
                    "PD_S3_ACCESS_KEY_ID, PD_S3_SECRET_ACCESS_KEY and the bucket's policy"
                ) from None
            raise PdError(
                f"{endpoint} refused {self.url(path)}: {error.operation_name}, {code}"
            ) from None
        except (boto.NoCredentialsError, boto.PartialCredentialsError):
            raise BadParams(
                "no credentials for S3; set PD_S3_ACCESS_KEY_ID and PD_S3_SECRET_ACCESS_KEY, or "
                "what boto3 reads"
            ) from None
        except (boto.EndpointConnectionError, boto.HTTPClientError):
            raise PdError(
                f"{endpoint} does not respond; check PD_S3_ENDPOINT_URL and the network"
            ) from None
        except boto.BotoCoreError as error:
            raise PdError(f"{self.url(path)} at {endpoint}: {error}") from None


def open_mirror(
    location: str | None,
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    attempts: int = 4,
) -> Mirror:
    """Return the mirror at a location; the server is not contacted yet.

    Args:
        location: `s3://bucket/prefix`.
        endpoint: Address of the server; None for Amazon's.
        access_key: Credential; None for those that boto3 finds.
        secret_key: Credential; None for those that boto3 finds.
        attempts: Attempts of a request, those of boto3 included.

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
        request_checksum_calculation="when_required",  # some servers lack the newest algorithms
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, **({"addressing_style": "path"} if endpoint else {})},
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
    return Mirror(client, match["bucket"], f"{prefix}/" if prefix else "")


def _counter(total: int, on_progress: OnProgress) -> Callable[[int], None]:
    """Return a callback for boto3's threads, which adds up the bytes sent."""
    done, lock = 0, Lock()

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            on_progress(done, total)

    return add


def _checksum(head: dict[str, Any]) -> str:
    """Return the checksum in an object's metadata; empty if it has none."""
    digits = head["Metadata"].get("sha256", "")
    return f"sha256:{digits}" if digits else ""


def _blocks(body: Any) -> Iterator[bytes]:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        yield from body.iter_chunks(_BLOCK)
    except (BotoCoreError, HTTPError) as error:
        raise Interrupted(str(error)) from None
    finally:
        body.close()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
