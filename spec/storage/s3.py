"""A run in S3 or anything that speaks its protocol.

Settings come from the standard chain alone (`AWS_ACCESS_KEY_ID`, profiles, instance roles, `AWS_ENDPOINT_URL`,
`AWS_REGION`). Stores that reject the checksums which boto3 adds since 1.36 want
`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`; integrity does not rest on them, but on the SHA-256 in markers.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from spec.errors import BadInput, PassingFault
from spec.storage.store import Entry

_FOR_GOOD = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "InvalidBucketName", "403"}


class S3Store:
    """See `spec.storage.Store`. One object a key; large files go up in parts that a failure aborts."""

    def __init__(self, url: str):
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise BadInput(f"{url}: no bucket named; it reads s3://BUCKET/PREFIX")
        self.prefix = prefix.strip("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        retries = Config(retries={"mode": "standard", "max_attempts": 8}, connect_timeout=10, read_timeout=60)
        with self._told("open"):
            self._client = boto3.session.Session().client("s3", config=retries)

    def read(self, key: str) -> bytes:
        with self._told(key):
            return self._client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        with self._told(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

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
            return sorted(
                Entry(item["Key"][skip:], item["Size"]) for page in pages for item in page.get("Contents", [])
            )

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
        return S3Store(f"{self.url}/{prefix}")

    def local_path(self) -> Path | None:
        return None

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into the store's own."""
        where = f"{self.url}/{key}"
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(where) from error
            kind = BadInput if code in _FOR_GOOD else PassingFault
            raise kind(f"{where}: the store answers {code}: {_line(error)}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise BadInput(
                f"{where}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            ) from error
        except S3UploadFailedError as error:
            kind = BadInput if any(f"({code})" in str(error) for code in _FOR_GOOD) else PassingFault
            raise kind(f"{where}: {_line(error)}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise PassingFault(f"{where}: the store cannot be reached: {_line(error)}") from error
        except ValueError as error:  # an endpoint or a region that is no URL or name
            raise BadInput(f"{where}: {_line(error)}") from error


_PARTS = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=4)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
