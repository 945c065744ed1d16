"""Several files by one pattern, where it is asked for: `*`, `?` and `[...]` within one folder's or file's name.

The same here and in object storage, where a pattern is matched with whole keys.
"""

import glob
from pathlib import Path, PurePosixPath

from spec.errors import BadInput
from spec.storage import Store, open_store


def is_pattern(name: str) -> bool:
    """Whether anything in a name could stand for something else."""
    return glob.has_magic(name)


def split_pattern(pattern: str) -> tuple[str, str]:
    """The folder before the first name that is a pattern ("" for none), and the rest: `s3://b/logs`, `*/x.log`."""
    names = pattern.split("/")
    first = next(place for place, name in enumerate(names) if glob.has_magic(name))
    return "/".join(names[:first]), "/".join(names[first:])


def local_files(pattern: str) -> list[Path]:
    """The files that match, sorted. Raises `BadInput` where none does."""
    found = sorted(path for path in map(Path, glob.glob(str(Path(pattern).expanduser()))) if path.is_file())
    if not found:
        raise BadInput(f"{pattern}: no file matches; a name with such characters is read without --glob")
    return found


def stored_files(pattern: str) -> tuple[Store, list[str]]:
    """The folder of an `s3://` pattern, and the keys below it that match. Raises `BadInput` where none does."""
    folder, rest = split_pattern(pattern)
    if folder in ("s3:", "s3:/"):
        raise BadInput(f"{pattern}: the bucket must be named; it reads s3://BUCKET/PREFIX/*.log")
    store = open_store(folder)
    keys = [key for key, _ in store.list() if PurePosixPath(f"/{key}").match(f"/{rest}") and ".." not in key.split("/")]
    if not keys:
        raise BadInput(f"{pattern}: no object matches")
    return store, keys
