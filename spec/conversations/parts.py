"""The part files of a shard that is being worked on: appended to while rows finish, read again after a stop.

In a directory every row is handed to the operating system as soon as it is finished, so that not even a SIGKILL loses
it; a last line that was cut short is cut off when the shard is taken up again. An object store has no appending: there
rows gather until `flush` sends them up as one small part, and a SIGKILL costs what was gathered since.

Part names carry the digest of the settings that made them (`part-DIGEST-PROCESS-00000.jsonl`), so that rows of other
settings are never taken for ours, and a random name of the process, so that a forgotten twin overwrites nothing.
"""

import fcntl
import hashlib
import io
import itertools
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from spec.errors import PassingFault
from spec.storage import Store
from spec.storage.directory import writing
from spec.storage.markers import File, describe_files

_PART_BYTES = 64 << 20  # where a part in a directory is closed and the next one begun
_READ_AHEAD = 16


class Parts(Protocol):
    """First all of `lines`, then `append` and `flush`, at last `files`."""

    def lines(self) -> Iterator[bytes]:
        """Every whole line that earlier processes left under the same settings."""

    def append(self, line: bytes) -> None:
        """Take one line, which ends in a line feed."""

    def flush(self) -> None:
        """Make what was appended survive this process. May run in another thread than `append`."""

    def files(self) -> dict[str, File]:
        """End the open part; what the marker vouches for."""


@contextmanager
def open_parts(store: Store, digest: str) -> Iterator[Parts]:
    """The parts in `store` (the shard's folder) made with the settings of `digest`; those of other settings go.

    What was appended is flushed at the end, whatever ends the block. Raises `PassingFault` where another process works
    on the same directory.
    """
    folder = store.local_path()
    if folder is None:
        parts = _ObjectParts(store, *_part_names(store, digest))
        try:
            yield parts
        finally:
            parts.flush()
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield _FileParts(folder, *_part_names(store, digest))
    except BlockingIOError as error:
        raise PassingFault(f"{folder}: another process is at work on this shard; wait for it, or stop it") from error
    finally:
        os.close(lock)


def _part_names(store: Store, digest: str) -> tuple[list[str], Iterator[str]]:
    """The names of our parts so far, and names for more."""
    ours = f"part-{digest}-"
    parts = [entry.key for entry in store.list() if entry.key.startswith("part-")]
    for name in parts:
        if not name.startswith(ours):
            store.delete(name)
    process = secrets.token_hex(4)
    new_names = (f"{ours}{process}-{number:05}.jsonl" for number in itertools.count())
    return sorted(name for name in parts if name.startswith(ours)), new_names


class _FileParts:
    def __init__(self, folder: Path, names: list[str], new_names: Iterator[str]):
        self._folder = folder
        self._names = names
        self._new_names = new_names
        self._file: io.FileIO | None = None

    def lines(self) -> Iterator[bytes]:
        for name in self._names:
            path = self._folder / name
            whole = 0
            with open(path, "rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        whole += len(line)
                        yield line
            if whole < path.stat().st_size:
                os.truncate(path, whole)

    def append(self, line: bytes) -> None:
        if self._file is None:
            self._names.append(next(self._new_names))
            self._file = io.FileIO(self._folder / self._names[-1], "x")
        rest = memoryview(line)
        with writing(self._folder / self._names[-1]):
            while rest:  # an unbuffered write may take less than it was given
                rest = rest[self._file.write(rest) :]
        if self._file.tell() >= _PART_BYTES:
            self._end_part()

    def flush(self) -> None:
        """Nothing waits here: `append` has no buffer."""

    def files(self) -> dict[str, File]:
        self._end_part()
        return describe_files(self._folder, self._names)

    def _end_part(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class _ObjectParts:
    def __init__(self, store: Store, names: list[str], new_names: Iterator[str]):
        self._store = store
        self._names = names
        self._new_names = new_names
        self._files: dict[str, File] = {}
        self._waiting: list[bytes] = []
        self._flushing = threading.Lock()

    def lines(self) -> Iterator[bytes]:
        with ThreadPoolExecutor(_READ_AHEAD) as readers:
            for start in range(0, len(self._names), _READ_AHEAD):
                names = self._names[start : start + _READ_AHEAD]
                for name, data in zip(names, readers.map(self._store.read, names), strict=True):
                    self._files[name] = _describe(data)
                    yield from io.BytesIO(data)

    def append(self, line: bytes) -> None:
        self._waiting.append(line)

    def flush(self) -> None:
        with self._flushing:
            waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            name, data = next(self._new_names), b"".join(waiting)
            try:
                self._store.write(name, data)
            except BaseException:
                self._waiting = waiting + self._waiting
                raise
            self._files[name] = _describe(data)

    def files(self) -> dict[str, File]:
        self.flush()
        return self._files


def _describe(data: bytes) -> File:
    return File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
