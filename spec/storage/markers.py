"""The small JSON file that a step writes last. Without it, what the step wrote is not there.

A marker holds the settings and inputs that made it and the SHA-256 of every file it vouches for. Asked again for
the same settings and inputs, a step finds its marker and has nothing to do; for others, it stops and says which differ.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from spec.errors import BadInput
from spec.storage.store import Store, file_sha256

Json = dict[str, Any]


class File(BaseModel):
    """One file that a marker vouches for; keyed by its path relative to the marker."""

    sha256: str
    bytes: int


class Marker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: str
    digest: str  # of step, settings and inputs
    settings: Json
    inputs: Json  # digests of the markers, or hashes of the files, that the step read
    files: dict[str, File] = {}
    counts: dict[str, int] = {}
    facts: Json = {}  # anything else worth knowing: statistics, timings, versions
    finished_at: str = ""


def digest_of(step: str, settings: Json, inputs: Json) -> str:
    """Hash of everything that decides what a step writes (16 hex digits)."""
    plain = json.dumps([step, settings, inputs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def read_marker(store: Store, key: str) -> Marker | None:
    """The marker at `key`, or None. A damaged one is `BadInput`."""
    try:
        return Marker.model_validate_json(store.read(key))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadInput(
            f"{store.url}/{key}: not a marker ({error.errors()[0]['msg']}); delete it to redo the step"
        ) from error


def find_marker(
    store: Store, key: str, step: str, settings: Json, inputs: Json, *, overwrite: bool = False
) -> Marker | None:
    """The marker of this very work, or None if the work is to be done.

    Raises `BadInput` naming the first difference where the marker is of other settings or inputs, unless `overwrite`,
    which deletes it (so that readers never see an old marker over new data).
    """
    found = read_marker(store, key)
    if found is None or found.digest == digest_of(step, settings, inputs):
        return found
    if overwrite:
        store.delete(key)
        return None
    raise BadInput(
        f"{store.url}/{key} was made otherwise: {difference(found, settings, inputs)}; --overwrite replaces it"
    )


def difference(found: Marker, settings: Json, inputs: Json) -> str:
    """The first setting or input that differs, as `settings.seed: 1 there, 2 asked`."""
    for part, there, asked in (("settings", found.settings, settings), ("inputs", found.inputs, inputs)):
        for name in sorted(there.keys() | asked.keys()):
            if there.get(name) != asked.get(name):
                return f"{part}.{name}: {there.get(name)!r} there, {asked.get(name)!r} asked"
    return "another step's or an older version's marker"


def write_marker(store: Store, key: str, marker: Marker) -> Marker:
    """Write `marker` with the time; the last write of a step."""
    marker = marker.model_copy(update={"finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    store.write(key, (marker.model_dump_json(indent=1) + "\n").encode())
    return marker


def describe_files(folder: Path, names: list[str]) -> dict[str, File]:
    """`Marker.files` for files below a local folder."""
    return {name: File(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in names}


def check_files(folder: Path, marker: Marker) -> None:
    """Raise `BadInput` naming the first file below a local folder that is not what `marker` vouches for."""
    for name, expected in marker.files.items():
        path = folder / name
        if not path.is_file():
            raise BadInput(f"{path}: missing, though the {marker.step} marker lists it")
        if path.stat().st_size != expected.bytes or file_sha256(path) != expected.sha256:
            raise BadInput(f"{path}: damaged: its SHA-256 is not the one in the {marker.step} marker")


def fetch(store: Store, marker: Marker, scratch: Path) -> Path:
    """A local folder with the files of `marker` (relative to `store`), verified. For a directory, the folder itself."""
    folder = store.local_path()
    if folder is None:
        folder = scratch
        for name, expected in marker.files.items():
            path = folder / name
            if not (path.is_file() and path.stat().st_size == expected.bytes and file_sha256(path) == expected.sha256):
                store.download(name, path)
    check_files(folder, marker)
    return folder
