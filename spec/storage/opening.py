"""The choice of a run's backend by its URL."""

from pathlib import Path

from spec.errors import BadInput
from spec.storage.directory import DirectoryStore
from spec.storage.store import Store


def open_store(url: str | Path) -> Store:
    """A store for `s3://bucket/prefix` or a directory (which need not exist yet)."""
    url = str(url)
    if url.startswith("s3://"):
        from spec.storage.s3 import S3Store  # boto3 takes 0.3 s to import

        return S3Store(url)
    if "://" in url and not url.startswith("file://"):
        raise BadInput(f"{url}: only directories and s3:// URLs hold a run")
    return DirectoryStore(Path(url.removeprefix("file://")))
