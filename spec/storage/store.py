"""The interface that the steps share a run through."""

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    key: str
    size: int  # bytes


class Store(Protocol):
    """Keys are relative paths with `/`. A key is seen whole or not at all: writes are atomic.

    Errors: `FileNotFoundError` for a missing key, `BadInput` for what will not mend itself (no such bucket, access
    denied), `PassingFault` for what may (timeouts, 5xx, a full disk).
    """

    url: str

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def replace(self, key: str, data: bytes, was: bytes | None) -> bool:
        """Write, only if the key holds `was` (None: is missing) until then; False if it does not.

        Of several at the same moment, one is True. On a store that knows no conditional writes it is `BadInput`.
        """

    def upload(self, key: str, path: Path) -> None:
        """Store a file of any size; a failed upload leaves nothing behind."""

    def download(self, key: str, path: Path) -> None:
        """Fetch to `path`, whose parents are made; `path` appears only when complete."""

    def list(self, prefix: str = "") -> list[Entry]:
        """Every entry below the folder `prefix` ("" is all), sorted by key."""

    def exists(self, key: str) -> bool: ...

    def delete(self, key: str) -> None:
        """Remove one key; a missing one is fine."""

    def at(self, prefix: str) -> "Store":
        """The same store seen from the folder `prefix`."""

    def local_path(self) -> Path | None:
        """The directory itself, or None where files must be downloaded first."""


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
