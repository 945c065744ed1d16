"""A model that can be staged, wherever it lies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A model to stage, resolved: what happens to a branch meanwhile changes nothing."""

    commit: str  # the hub's; "" for files that nobody gave a name
    files: dict[str, int]  # name: bytes
    download: Callable[[str, Path], None]  # a file of it to a path
    is_right: Callable[[str, Path], bool]  # whether the bytes at a path are that file's
