"""A run in S3 or anything that speaks its protocol.

Settings come from the standard chain alone (`AWS_ACCESS_KEY_ID`, profiles, instance roles, `AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_MAX_ATTEMPTS`). Stores that reject the checksums which boto3 adds since 1.36 want
`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`; integrity does not rest on them, but on the SHA-256 in markers.
"""

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto
from botocore.config import Config

from spec.errors import BadInput, PassingFault, SpecError
from spec.storage.store import Entry

# Answers below 500 that another try may mend, and those from 500 that it will not.
_PASSING_CODES = {"RequestTimeout", "BadDigest", "IncompleteBody", "InvalidPart", "NoSuchUpload", "SlowDown"}
_LASTING_CODES = {"NotImplemented"}
_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_FAULTS = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.MetadataRetrievalError,
    Boto3Error,
)
_RIGHTS = "use credentials that may, or another bucket"
_KEYS = "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE or the role)"
_ADVICE = (
    {"NoSuchBucket": "create it, or correct its name", "AccessDenied": _RIGHTS, "403": _RIGHTS}
    | dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"), _KEYS)
    | dict.fromkeys(("XMinioStorageFull", "QuotaExceeded"), "make room in it")
)
# What stores answer that do not know the newer checksums.
_CHECKSUM_CODES = {"NotImplemented", "InvalidRequest", "InvalidArgument", "InvalidDigest", "XAmzContentSHA256Mismatch"}
_PARTS = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=4)


class _Changed(SpecError):
    """A conditional write came too late."""


class S3Store:
    """See `spec.storage.Store`. One object a key; large files go up in parts that a failure aborts."""

    def __init__(self, url: str):
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise BadInput(f"{url}: no bucket named; it reads s3://BUCKET/PREFIX")
        self.prefix = prefix.strip("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        with self._told(""):
            attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", 8))
            retries = {"mode": "standard", "total_max_attempts": attempts}
            config = Config(retries=retries, connect_timeout=10, read_timeout=60, **_proxies())
            self._client = _session().client("s3", config=config)

    def read(self, key: str) -> bytes:
        with self._told(key):
            return self._client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        with self._told(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

    def replace(self, key: str, data: bytes, was: bytes | None) -> bool:
        only: dict[str, str] = {"IfNoneMatch": "*"}
        if was is not None:
            try:
                with self._told(key):
                    there = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
                    now = there["Body"].read()
            except FileNotFoundError:
                return False
            if now != was:
                return False
            only = {"IfMatch": there["ETag"]}
        try:
            with self._told(key):
                self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **only)
        except _Changed:  # by somebody, or by an earlier try of this very call whose answer was lost
            return self.exists(key) and self.read(key) == data
        return True

    def upload(self, key: str, path: Path) -> None:
        with self._told(key):
            self._client.upload_file(str(path), self.bucket, self._full(key), Config=_PARTS)

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        os.close(handle)
        try:
            with self._told(key):
                self._client.download_file(self.bucket, self._full(key), partial, Config=_PARTS)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[Entry]:
        folder = self._full(prefix.rstrip("/") + "/" if prefix else "")
        skip = len(self.prefix) + 1 if self.prefix else 0
        with self._told(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            found = [item for page in pages for item in page.get("Contents", [])]
        # Keys that end in "/" are the empty objects that S3 consoles make to show a folder.
        return sorted(Entry(item["Key"][skip:], item["Size"]) for item in found if not item["Key"].endswith("/"))

    def exists(self, key: str) -> bool:
        try:
            with self._told(key):
                self._client.head_object(Bucket=self.bucket, Key=self._full(key))
            return True
        except FileNotFoundError:
            return False

    def delete(self, key: str) -> None:
        with self._told(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def at(self, prefix: str) -> "S3Store":
        below = copy.copy(self)  # shares the client, which is safe between threads and slow to make
        below.prefix = self._full(prefix.strip("/"))
        below.url = f"s3://{self.bucket}/{below.prefix}"
        return below

    def local_path(self) -> Path | None:
        return None

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into the store's own."""
        where = f"{self.url}/{key}".rstrip("/")
        try:
            yield
        except boto.ClientError as error:
            raise _answered(where, error) from error
        except S3UploadFailedError as error:
            if isinstance(error.__context__, boto.ClientError):
                raise _answered(where, error.__context__) from error
            raise PassingFault(f"{where}: {_line(error)}") from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise BadInput(
                f"{where}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            ) from error
        except _PASSING_FAULTS as error:
            raise PassingFault(f"{where}: the store cannot be reached: {_line(error)}") from error
        except (boto.BotoCoreError, ValueError) as error:  # a bucket, endpoint, region or profile that cannot be
            raise BadInput(f"{where}: {_line(error)}") from error


def _session() -> boto3.session.Session:
    """The standard chain's credentials; space around keys of the environment, as a line feed, is no part of them.

    It would stand in a header, which no client sends: a fault that looks as if it might pass, and never does.
    """
    keys = {}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        key = os.environ.get(name, "")
        if any(not "!" <= character <= "~" for character in key.strip()):
            raise BadInput(f"{name}: holds a character that no key has, a space or a line feed for one; set it again")
        keys[name.lower()] = key.strip() or None
    stripped = any(value and value != os.environ[name.upper()] for name, value in keys.items())
    return boto3.session.Session(**keys) if stripped else boto3.session.Session()


def _proxies() -> dict[str, Any]:
    """No proxy for a store on this machine, whatever the environment names; elsewhere the environment decides."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    host = urlsplit(endpoint).hostname or ""
    return {"proxies": {}} if host == "localhost" or host == "::1" or host.startswith("127.") else {}


def _answered(where: str, error: boto.ClientError) -> SpecError | FileNotFoundError:
    """What a store's refusal means: a missing key, a fault that lasts, or one that may pass."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code == "PreconditionFailed" or status == 412:
        return _Changed(where)
    if code in ("NoSuchKey", "404"):
        return FileNotFoundError(where)
    passing = code in _PASSING_CODES or status in _PASSING_STATUS or status >= 500
    message = f"{where}: the store answers {code}: {_line(error)}"
    if code in _ADVICE:
        message += f"; {_ADVICE[code]}"
    if passing and code not in _LASTING_CODES:
        return PassingFault(message)
    if code in _CHECKSUM_CODES and "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
        message += "; if it knows no CRC checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    return BadInput(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
