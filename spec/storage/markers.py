"""The small JSON file that a step writes last. Without it, what the step wrote is not there.

A marker holds the settings and inputs that made it and the SHA-256 of every file it vouches for. Asked again for
the same settings and inputs, a step finds its marker and has nothing to do; for others, it stops and says which differ.
"""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from spec.errors import BadInput
from spec.storage.store import Store, file_sha256

Json = dict[str, Any]


class File(BaseModel):
    """One file that a marker vouches for; keyed by its path relative to the marker."""

    sha256: str
    bytes: int


def _inside(name: str) -> str:
    """Refuse a name that leads out of the folder: markers and manifests are read from other people's buckets."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == "." or "\\" in name:
        raise ValueError(f"{name!r} is not the path of a file inside the folder")
    return name


Files = dict[Annotated[str, AfterValidator(_inside)], File]


class Marker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: str
    digest: str  # of step, settings and inputs
    settings: Json
    inputs: Json  # `identity` of the markers, or hashes of the files, that the step read
    files: Files = {}
    counts: dict[str, int] = {}
    facts: Json = {}  # anything else worth knowing: statistics, timings, versions
    finished_at: str = ""

    @classmethod
    def of(cls, step: str, settings: Json, inputs: Json, **rest: Any) -> "Marker":
        """A step's marker, `rest` its other fields, with the digest of what decides it."""
        return cls(step=step, digest=digest_of(step, settings, inputs), settings=settings, inputs=inputs, **rest)

    @property
    def identity(self) -> str:
        """What a later step names as its input: `digest` and the content of every file (16 hex digits).

        `digest` alone is the same before and after a step is redone with the same settings; what it wrote need not be
        (a GPU's sums differ from run to run), and evidence gathered on the old files says nothing of the new.
        """
        hashes = {name: file.sha256 for name, file in self.files.items()}
        return digest_of(self.step, {"digest": self.digest}, hashes)


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
    asked = json.loads(json.dumps([settings, inputs]))  # tuples become lists, as they did in the marker
    return (
        first_difference(found.settings, asked[0], "settings.")
        or first_difference(found.inputs, asked[1], "inputs.")
        or "another step's or an older version's marker"
    )


def first_difference(there: Json, asked: Json, path: str = "") -> str:
    """The first entry, at any depth, that differs, as `PATHseed: 1 there, 2 asked`; "" where all are equal."""
    for name in sorted(there.keys() | asked.keys()):
        old, new = there.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if deeper := first_difference(old, new, f"{path}{name}."):
                return deeper
        elif old != new:
            return f"{path}{name}: {_shown(old)} there, {_shown(new)} asked"
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def write_marker(store: Store, key: str, marker: Marker) -> Marker:
    """Write `marker` with the time; the last write of a step."""
    marker = marker.model_copy(update={"finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    store.write(key, (marker.model_dump_json(indent=1) + "\n").encode())
    return marker


def describe_files(folder: Path, names: list[str]) -> dict[str, File]:
    """`Marker.files` for files below a local folder."""
    return {name: File(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in names}


_REDO = "delete the marker and run that step again"


def check_files(folder: Path, marker: Marker) -> None:
    """Raise `BadInput` naming the first file below a local folder that is not what `marker` vouches for."""
    for name, expected in marker.files.items():
        path = folder / name
        if not path.is_file():
            raise BadInput(f"{path}: missing, though the {marker.step} marker lists it; {_REDO}")
        if path.stat().st_size != expected.bytes or file_sha256(path) != expected.sha256:
            raise BadInput(f"{path}: damaged: its SHA-256 is not the one in the {marker.step} marker; {_REDO}")


def fetch(store: Store, marker: Marker, scratch: Path) -> Path:
    """A local folder with the files of `marker` (relative to `store`), verified. For a directory, the folder itself."""
    folder = store.local_path()
    if folder is None:
        folder = scratch
        for name, expected in marker.files.items():
            path = folder / name
            if not (path.is_file() and path.stat().st_size == expected.bytes and file_sha256(path) == expected.sha256):
                with suppress(FileNotFoundError):  # below, it is named
                    store.download(name, path)
    check_files(folder, marker)
    return folder
