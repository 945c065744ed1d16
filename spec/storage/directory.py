"""A run in a directory: the backend for one machine and for shared file systems."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spec.errors import BadInput
from spec.storage.store import Entry


class DirectoryStore:
    """See `spec.storage.Store`. Atomic by rename; what is still being written has a name that `list` leaves out."""

    def __init__(self, root: Path):
        if root.exists() and not root.is_dir():
            raise BadInput(f"{root}: a file, where a directory is needed")
        self.root = root
        self.url = str(root)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with _replacing(self.root / key) as partial:
            partial.write_bytes(data)

    def replace(self, key: str, data: bytes, was: bytes | None) -> bool:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / f"{_PARTIAL}lock", "w") as lock:  # `list` leaves it out
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.read(key) if self.exists(key) else None) != was:
                return False
            self.write(key, data)
            return True

    def upload(self, key: str, path: Path) -> None:
        target = self.root / key
        if target.exists() and target.samefile(path):
            return  # a step that wrote straight into its run
        with _replacing(target) as partial:
            shutil.copyfile(path, partial)

    def download(self, key: str, path: Path) -> None:
        if not (self.root / key).is_file():
            raise FileNotFoundError(str(self.root / key))
        with _replacing(path) as partial:
            shutil.copyfile(self.root / key, partial)

    def list(self, prefix: str = "") -> list[Entry]:
        folder = self.root / prefix
        found = []
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # another process moved or deleted it just now
                if path.is_file() and not path.name.startswith(_PARTIAL):
                    found.append(Entry(path.relative_to(self.root).as_posix(), path.stat().st_size))
        return sorted(found)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def at(self, prefix: str) -> "DirectoryStore":
        return DirectoryStore(self.root / prefix)

    def local_path(self) -> Path | None:
        return self.root


_PARTIAL = ".partial-"


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A file beside `target` that takes its place, flushed to disk, only when the block ends well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{target.parent}: a file stands where a directory is needed") from error
    except FileNotFoundError as error:  # its parents are made: this file system takes none
        raise BadInput(f"{target.parent}: no directory can be made there; choose another path") from error
    with writing(target):
        handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=target.parent)
    partial = Path(name)
    try:
        with writing(target):
            yield partial
            os.fsync(handle)
        os.chmod(handle, 0o644)  # mkstemp's 0600 would hide the file from other users of a shared run
        partial.rename(target)
        _flush_names(target.parent)
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`; nobody else may be writing there."""
    for path in folder.rglob(f"{_PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Let a full disk's error name the file that found no room; by itself it names none, or the one copied from."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename, error.filename2 = str(target), None
        raise


def _flush_names(folder: Path) -> None:
    """Make a rename survive a power cut, so that a marker never outlives the data it was written after."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
