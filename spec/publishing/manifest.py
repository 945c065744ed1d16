"""What a published version is: its manifest, and the interface of the places that hold versions."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import EllipsisType
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from spec.errors import BadInput, BelowBar
from spec.storage.markers import File, Files

MANIFEST = "manifest.json"

Kind = Literal["draft", "answers"]


class Manifest(BaseModel):
    """What a version holds. `version` is the hash of `kind` and `files` (16 hex digits)."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    version: str
    files: Files

    @classmethod
    def of(cls, kind: Kind, files: dict[str, File]) -> "Manifest":
        hashes = json.dumps([kind, {name: files[name].sha256 for name in sorted(files)}])
        return cls(kind=kind, version=hashlib.sha256(hashes.encode()).hexdigest()[:16], files=files)

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Manifest":
        """Raises `BadInput` for what is damaged or was put together by hand."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            raise BadInput(f"{where}: not a manifest ({error.errors()[0]['msg']}); publish it again") from error
        if manifest != cls.of(manifest.kind, manifest.files):
            raise BadInput(f"{where}: damaged: the version it names is not that of its files; publish it again")
        return manifest

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()


class Overtaken(BelowBar):
    """Another version was published since the one that this was compared with: nobody knows which is better."""

    def __init__(self, url: str, there: str | None, replaces: str | None):
        super().__init__(
            f"{url}: {_named(there)} is published there by now, and this draft was compared with {_named(replaces)}; "
            "submit the same run again (or run tools/evaluate_draft.py) to compare it with that one"
        )


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


class Version(NamedTuple):
    """A published version, resolved: whatever is published meanwhile, `download` gives this one's files."""

    manifest: Manifest
    download: Callable[[str, Path], None]


class Place(Protocol):
    """Where versions are published: a store or a hub."""

    def publish(
        self,
        manifest: Manifest,
        files: dict[str, Path],
        say: Callable[[str], None],
        replaces: str | None | EllipsisType = ...,
    ) -> bool:
        """Make this the latest version; False if it already is, whole.

        `replaces`: the version (None: no version) that must be the latest by then, else `Overtaken` is raised, whoever
        publishes at the same moment.
        """

    def latest(self) -> str | None:
        """The latest version's name; None where nothing is published yet."""

    def resolve(self, version: str | None) -> Version:
        """The named version, or the latest. Raises `BadInput` where there is none."""
