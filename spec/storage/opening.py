"""The choice of a run's backend by its URL."""

import re
from pathlib import Path

from spec.errors import BadInput
from spec.storage.directory import DirectoryStore
from spec.storage.store import Store


def open_store(url: str | Path) -> Store:
    """A store for `s3://bucket/prefix` or a directory (which need not exist yet)."""
    url = str(url)
    check_no_secret(url)
    if url.startswith("s3://"):
        from spec.storage.s3 import S3Store  # boto3 takes 0.3 s to import

        return S3Store(url)
    if "://" in url and not url.startswith("file://"):
        raise BadInput(f"{url}: only directories and s3:// URLs hold a run")
    return DirectoryStore(Path(url.removeprefix("file://")))


def check_no_secret(url: str) -> None:
    """`BadInput`, which does not show it, for a URL with a name or a password in it: it would stand in lineages."""
    scheme, there, rest = url.partition("://")
    secret, at, place = rest.partition("/")[0].rpartition("@")
    if there and at and secret:
        raise BadInput(
            f"{scheme.rpartition('/')[2]}://{place}: a name or password in the URL would be shown and kept; leave it "
            "out and set the store's environment variables"
        )


def is_hub_name(name: str) -> bool:
    """Whether it could be a repository's on a hub, ORG/NAME. A folder may be called so too."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None
