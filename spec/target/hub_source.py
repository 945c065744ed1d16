"""A model on a Hugging Face hub as something to stage: one commit, each file checked against the hub's own hash."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from spec.errors import BadInput
from spec.storage import file_sha256
from spec.storage.hub_errors import told
from spec.target.source import Source

_CACHE = ".cache"  # where the hub's client keeps what is half downloaded, inside the folder it downloads to


def on_hub(model: str, revision: str | None) -> Source:
    """`model` (ORG/NAME) at `revision`, a branch or tag resolved to its commit. `BadInput` if it is not there."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    if not sys.stderr.isatty():
        disable_progress_bars()
    with told(model):
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        try:
            commit = str(api.model_info(model, revision=revision).sha)
        except RevisionNotFoundError as error:
            raise BadInput(f"{model}: the hub has no revision {revision} of it") from error
        tree = api.list_repo_tree(model, revision=commit, recursive=True)
        entries = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def download(name: str, path: Path) -> None:
        folder = Path(str(path).removesuffix(name))
        try:
            with told(f"{model}/{name}"):
                api.hf_hub_download(model, name, revision=commit, local_dir=folder)
        finally:
            shutil.rmtree(folder / _CACHE, ignore_errors=True)

    def is_right(name: str, path: Path) -> bool:
        entry = entries[name]
        return file_sha256(path) == entry.lfs.sha256 if entry.lfs else _git_blob(path) == entry.blob_id

    return Source(commit, {name: entry.size for name, entry in entries.items()}, download, is_right)


def is_there(model: str) -> bool:
    """Whether the hub has `model` (ORG/NAME) for whoever asks; what is private to others is not there."""
    with told(model):
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_exists(model)


def _git_blob(path: Path) -> str:
    """The name that git gives the content of a (small) file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
