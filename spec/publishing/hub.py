"""Versions on a Hugging Face hub: one atomic commit each, tagged with the version's name.

The files stand at the root of the repository, so that SGLang and `datasets` load it by its name alone. Address and
token come from the hub's own standard chain (`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`).
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import EllipsisType
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from spec.errors import BadInput
from spec.publishing.manifest import MANIFEST, Kind, Manifest, Overtaken, Version
from spec.storage.hub_errors import told

_REPO_TYPES = {"draft": "model", "answers": "dataset"}
_KEPT = {".gitattributes", ".gitignore"}  # the hub's own


class HubPlace:
    """See `spec.publishing.manifest.Place`."""

    def __init__(self, url: str, kind: Kind):
        self._url = url
        self._repo: dict[str, Any] = {"repo_id": url.removeprefix("hf://").strip("/"), "repo_type": _REPO_TYPES[kind]}
        if self._repo["repo_id"].count("/") != 1:
            raise BadInput(f"{url}: a place on the hub reads hf://ORG/NAME")
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))

    def publish(
        self,
        manifest: Manifest,
        files: dict[str, Path],
        say: Callable[[str], None],
        replaces: str | None | EllipsisType = ...,
    ) -> bool:
        with self._told():
            self._api.create_repo(**self._repo, exist_ok=True)
            head = self._head()
            there = set(self._api.list_repo_files(**self._repo, revision=head))
            new = not self._holds(manifest, head, there)
            if new:
                if replaces is not ... and (now := self._version_at(head, there)) != replaces:
                    raise Overtaken(self._url, now, replaces)
                say(f"{len(files)} files in one commit")
                head = self._commit(manifest, files, head, there - _KEPT)
            self._api.create_tag(**self._repo, tag=manifest.version, revision=head, exist_ok=True)
        return new

    def latest(self) -> str | None:
        with self._told():
            if not self._api.repo_exists(**self._repo):
                return None
            head = self._head()
            return self._version_at(head, set(self._api.list_repo_files(**self._repo, revision=head)))

    def resolve(self, version: str | None) -> Version:
        with self._told():
            commit = self._head(version)
        try:
            manifest = self._manifest_at(commit)
        except FileNotFoundError as error:
            raise BadInput(f"{self._url}: not published by this project (it has no {MANIFEST})") from error
        return Version(manifest, lambda name, path: self._download(commit, name, path))

    def _head(self, revision: str | None = None) -> str:
        return str(self._api.repo_info(**self._repo, revision=revision).sha)

    def _holds(self, manifest: Manifest, commit: str, there: set[str]) -> bool:
        return {*manifest.files, MANIFEST} <= there and self._version_at(commit, there) == manifest.version

    def _version_at(self, commit: str, there: set[str]) -> str | None:
        return self._manifest_at(commit).version if MANIFEST in there else None

    def _commit(self, manifest: Manifest, files: dict[str, Path], parent: str, there: set[str]) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            CommitOperationAdd(MANIFEST, manifest.to_bytes()),
            *(CommitOperationDelete(name) for name in sorted(there - files.keys() - {MANIFEST})),
        ]
        message = f"Publish {manifest.kind} {manifest.version}"
        done = self._api.create_commit(
            **self._repo, operations=operations, commit_message=message, parent_commit=parent
        )
        lost = files.keys() - set(self._api.list_repo_files(**self._repo, revision=done.oid))
        if lost:  # the hub leaves out what a .gitignore there names, and says nothing
            raise BadInput(f"{self._url}: the hub dropped {sorted(lost)[0]}; remove the .gitignore there")
        return done.oid

    def _manifest_at(self, commit: str) -> Manifest:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / MANIFEST
            self._download(commit, MANIFEST, path)
            return Manifest.parse(path.read_bytes(), f"{self._url}/{MANIFEST}")

    def _download(self, commit: str, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as scratch, self._told(name):
            os.replace(self._api.hf_hub_download(**self._repo, filename=name, revision=commit, local_dir=scratch), path)

    def _told(self, name: str = "") -> AbstractContextManager[None]:
        return told(f"{self._url}/{name}".rstrip("/"))
