"""Where a run lives: one interface, two backends (a directory, S3). `open_store` picks by the URL."""

from spec.storage.opening import check_no_secret, is_hub_name, open_store
from spec.storage.store import Entry, Store, file_sha256

__all__ = ["Entry", "Store", "check_no_secret", "file_sha256", "is_hub_name", "open_store"]
