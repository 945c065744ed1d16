"""Published versions of a set of files: a reader sees the old one or the new one, never a mix.

    DEST/versions/0123456789abcdef/   the files, then manifest.json with the SHA-256 of each
    DEST/latest                       {"version": "0123456789abcdef", "before": [...]}, replaced last

A version is named by the hash of what is in it, so publishing the same again changes nothing, and two publishers never
write different files under one name. Old versions stay, and `before` says in which order they were the latest, the
newest first; deleting one is safe while `latest` does not name it (`spec.publishing.retention`). On a Hugging Face hub
(`hf://ORG/NAME`) a version is one commit, tagged with the same name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import EllipsisType

from spec.errors import BadInput, PassingFault
from spec.publishing.manifest import MANIFEST, Kind, Manifest, Overtaken, Place, Version
from spec.storage import Store, file_sha256, open_store
from spec.storage.directory import DirectoryStore, sweep
from spec.storage.markers import File

LATEST = "latest"


def open_place(url: str, kind: Kind) -> Place:
    """Where `url` (`s3://BUCKET/PREFIX`, `hf://ORG/NAME` or a directory) publishes versions of `kind`."""
    if url.startswith("hf://"):
        from spec.publishing.hub import HubPlace  # huggingface_hub takes a second to import

        return HubPlace(url, kind)
    return StorePlace(open_store(url))


def publish(
    url: str,
    kind: Kind,
    files: dict[str, Path],
    say: Callable[[str], None] = print,
    replaces: str | None | EllipsisType = ...,
) -> Manifest:
    """Publish local `files` (name in the version: path) at `url` as its latest version, and say how it went.

    `replaces`: see `Place.publish`.
    """
    described = {name: File(sha256=file_sha256(path), bytes=path.stat().st_size) for name, path in files.items()}
    manifest = Manifest.of(kind, dict(sorted(described.items())))
    if open_place(url, kind).publish(manifest, files, say, replaces):
        say(f"published {kind} {manifest.version} at {url}")
    else:
        say(f"{kind} {manifest.version} is already published at {url}")
    return manifest


def fetch(
    url: str, kind: Kind, folder: Path, *, version: str | None = None, say: Callable[[str], None] = print
) -> Manifest:
    """Bring a version (default: the latest) into `folder`, every SHA-256 verified; again costs only what is missing.

    Raises `BadInput` if the folder holds another version or anything else, so that it never becomes a mix of two.
    What a killed fetch left half-written goes: the folder is one fetch's at a time.
    """
    source = open_place(url, kind).resolve(version)
    manifest = source.manifest
    if manifest.kind != kind:
        raise BadInput(f"{url} holds {manifest.kind}, where {kind} is asked for")
    sweep(folder)
    _refuse_other_files(folder, manifest)
    for name, file in manifest.files.items():
        path = folder / name
        if _is_whole(path, file):
            continue
        say(f"{name} ({_size(file.bytes)})")
        source.download(name, path)
        if not _is_whole(path, file):
            path.unlink()
            raise BadInput(f"{url}: {name} of version {manifest.version} is damaged there; publish it again")
    DirectoryStore(folder).write(MANIFEST, manifest.to_bytes())
    return manifest


class StorePlace:
    """Versions in a directory or in S3."""

    def __init__(self, store: Store):
        self._store = store

    def publish(
        self,
        manifest: Manifest,
        files: dict[str, Path],
        say: Callable[[str], None],
        replaces: str | None | EllipsisType = ...,
    ) -> bool:
        stored = self._store.at(f"versions/{manifest.version}")
        whole = self._holds(stored, manifest)
        order, seen = self._order()
        there = order[0] if order else None
        if whole and there == manifest.version:
            return False
        if replaces is not ... and there not in (replaces, manifest.version):
            raise Overtaken(self._store.url, there, replaces)
        if not whole:
            if stored.exists(MANIFEST):  # of a version that lost files: not there until they are all back
                stored.delete(MANIFEST)  # asked only then, for whoever may write and not delete
            for name, file in manifest.files.items():
                say(f"{name} ({_size(file.bytes)})")
                stored.upload(name, files[name])
            stored.write(MANIFEST, manifest.to_bytes())
        pointer = _pointer([manifest.version, *(name for name in order if name != manifest.version)])
        if replaces is ...:
            self._store.write(LATEST, pointer)
        elif not self._store.replace(LATEST, pointer, seen):
            raise Overtaken(self._store.url, self.latest(), replaces)
        return True

    def roll_back(self, to: str | None, say: Callable[[str], None] = print) -> tuple[str, str]:
        """Make `to`, or what was the latest before, the latest again; returns the names of the one until now and of it.

        Of those before, what is gone or not whole is skipped, and said. `BadInput` where none is left, or `to` is not
        whole; `PassingFault` if somebody publishes meanwhile.
        """
        order, seen = self._order()
        if not order:
            raise BadInput(f"{self._store.url}: nothing is published here (there is no {LATEST})")
        if to == order[0]:
            raise BadInput(f"{self._store.url}: --to {to}: it is the latest already")
        name = to or self._before(order, say)
        if to and not self._holds(self._store.at(f"versions/{to}"), self.resolve(to).manifest):
            raise BadInput(f"{self._store.url}: version {to} has lost files; publish it again")
        # What is rolled back from is not among those before: once more goes one further.
        rest = order[order.index(name) + 1 :] if name in order else order[1:]
        if not self._store.replace(LATEST, _pointer([name, *rest]), seen):
            raise PassingFault(f"{self._store.url}/{LATEST} was changed meanwhile; look who publishes, and try again")
        return order[0], name

    def order(self) -> list[str]:
        """The versions that are or were the latest, the newest first, as far as `latest` knows."""
        return self._order()[0]

    def resolve(self, version: str | None) -> Version:
        name = version or self.latest()
        if name is None:
            raise BadInput(f"{self._store.url}: nothing is published here (there is no {LATEST})")
        stored = self._store.at(f"versions/{name}")
        try:
            manifest = Manifest.parse(stored.read(MANIFEST), f"{stored.url}/{MANIFEST}")
        except FileNotFoundError as error:
            have = sorted({entry.key.split("/")[1] for entry in self._store.list("versions")})
            raise BadInput(f"{self._store.url}: no version {name}; it has {', '.join(have) or 'none'}") from error
        if manifest.version != name:
            raise BadInput(f"{stored.url}: holds version {manifest.version} under another's name")
        return Version(manifest, stored.download)

    def latest(self) -> str | None:
        order, _ = self._order()
        return order[0] if order else None

    def _order(self) -> tuple[list[str], bytes | None]:
        """See `order`; and the pointer that says so, None where there is none."""
        try:
            data = self._store.read(LATEST)
            pointer = json.loads(data)
            return [str(pointer["version"]), *map(str, pointer.get("before", []))], data
        except FileNotFoundError:
            return [], None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{self._store.url}/{LATEST}: damaged ({error}); delete it and publish again") from error

    def _before(self, order: list[str], say: Callable[[str], None]) -> str:
        """The newest version before the latest that is there and whole: retention may have deleted any of them."""
        for name in order[1:]:
            fault = self._fault(name)
            if not fault:
                return name
            say(f"skipped: version {name} {fault}")
        whole = " that is there and whole" if order[1:] else ""
        raise BadInput(f"{self._store.url}/{LATEST}: names no version before {order[0]}{whole}; say which with --to")

    def _fault(self, name: str) -> str:
        """Why nobody can go back to a version; "" if one can."""
        stored = self._store.at(f"versions/{name}")
        if not stored.exists(MANIFEST):
            return "is gone"
        try:
            return "" if self._holds(stored, self.resolve(name).manifest) else "has lost files"
        except BadInput:
            return "is damaged"

    @staticmethod
    def _holds(stored: Store, manifest: Manifest) -> bool:
        sizes = dict(stored.list())
        return MANIFEST in sizes and all(sizes.get(name) == file.bytes for name, file in manifest.files.items())


def _pointer(order: list[str]) -> bytes:
    return json.dumps({"version": order[0], "before": order[1:]}).encode() + b"\n"


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_sha256(path) == file.sha256


def _refuse_other_files(folder: Path, manifest: Manifest) -> None:
    store = DirectoryStore(folder)
    if store.exists(MANIFEST):
        there = Manifest.parse(store.read(MANIFEST), str(folder / MANIFEST))
        if there.version != manifest.version:
            raise BadInput(
                f"{folder} holds version {there.version}, not {manifest.version}: take another folder or empty it"
            )
    foreign = [entry.key for entry in store.list() if entry.key not in {*manifest.files, MANIFEST}]
    if foreign:
        raise BadInput(f"{folder} holds other files ({foreign[0]}): take an empty or a new folder")


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
