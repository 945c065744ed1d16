"""Brings a target to the volume that servers and trainers read it from, and a run's draft to the server that proves it.

A target comes from a hub, at a pinned revision, or from object storage. Its marker, with the SHA-256 of every file, is
written last. A folder without it is a download that was cut short; the same call goes on with it.
"""

from pathlib import Path

from spec.cluster.preflight import STAGED, asking_the_hub
from spec.drafts.layout import MARKER
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.directory import DirectoryStore
from spec.storage.markers import Marker, describe_files, digest_of, fetch, find_marker, read_marker, write_marker

STEP = "stage"
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # no second copy in another format


def stage(model: str, revision: str, folder: Path) -> tuple[Marker, bool]:
    """Bring `model` into `folder`; returns its marker, and whether there was anything to do.

    Raises `BadInput` for what is no model of transformers, and `PassingFault` for the network and the store.
    """
    settings = {"model": model, "revision": revision}
    store = DirectoryStore(folder)
    if found := find_marker(store, STAGED, STEP, settings, {}):
        return found, False
    folder.mkdir(parents=True, exist_ok=True)
    names = _from_store(model, folder) if model.startswith("s3://") else _from_hub(model, revision, folder)
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise BadInput(f"parameter model: {model}: no config.json, or no safetensors files, there")
    marker = Marker(
        step=STEP,
        digest=digest_of(STEP, settings, {}),
        settings=settings,
        inputs={},
        files=describe_files(folder, names),
    )
    return write_marker(store, STAGED, marker), True


def stage_draft(url: str, folder: Path) -> Marker:
    """Bring the exported draft of a run (RUN/draft), not yet published, into `folder`, every SHA-256 verified."""
    store = open_store(url)
    marker = read_marker(store, MARKER)
    if marker is None:
        raise BadInput(f"{store.url}: no draft here ({MARKER} is missing); run tools/extract_draft_model.py")
    fetch(store, marker, folder)
    return marker


def _from_store(url: str, folder: Path) -> list[str]:
    source = open_store(url)
    names = []
    for entry in source.list():
        path = folder / entry.key
        if not (path.is_file() and path.stat().st_size == entry.size):  # whole: a download appears when complete
            print(f"{entry.key} ({entry.size / 1e6:.1f} MB)", flush=True)
            source.download(entry.key, path)
        names.append(entry.key)
    return names


def _from_hub(model: str, revision: str, folder: Path) -> list[str]:
    from huggingface_hub import snapshot_download  # a second to import

    with asking_the_hub(model, revision):
        snapshot_download(model, revision=revision, local_dir=folder, allow_patterns=_WANTED)
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("."))
