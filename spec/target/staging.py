"""Staging a target: every file of one revision, verified, in a directory or S3; from then on nobody asks a hub.

Files go one after another, each checked as it arrives and noted in `staging.json`, so that a run which was killed goes
on with the next one; the marker `staged.json` comes last and vouches for all of them. Nothing here imports torch.
"""

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from spec.errors import BadInput, PassingFault
from spec.storage import Store, file_sha256, open_store
from spec.storage.markers import File, Json, Marker, read_marker, write_marker
from spec.target.source import Source

STAGED = "staged.json"
NOTES = "staging.json"
INDEX = "model.safetensors.index.json"

# Other forms of the same weights, which nothing here reads, and what a hub or an earlier staging left.
LEFT_OUT = (
    *("original/*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx*", "*.h5", "*.msgpack", "*.tflite"),
    *(".git*", ".cache/*", STAGED, NOTES),
)


def stage(
    model: str, to: str, revision: str | None = None, *, overwrite: bool = False, say: Callable[[str], None] = print
) -> Marker:
    """Bring `model` (a hub's name, a directory or an `s3://` URL) to `to` (a directory or `s3://`); gives its marker.

    `revision` is a commit, branch or tag of the hub. Staged once, a branch stays the commit that it was then.
    `BadInput` where `to` holds another model or revision (unless `overwrite`) or the source is no model.
    """
    store = open_store(to)
    settings = {"model": model, "revision": revision or None}
    staged = None if overwrite else _find(store, settings)
    if staged:
        say(f"{store.url} is staged already: {_named(staged)}")
        return staged
    source = _open(model, revision or None)
    files = {name: size for name, size in source.files.items() if not any(fnmatch.fnmatch(name, p) for p in LEFT_OUT)}
    _refuse_no_model(model, files)
    store.delete(STAGED)  # under `overwrite`: what follows is a mix of two models until it is done
    inputs = {"commit": source.commit}
    notes = _read_notes(store, settings, inputs)
    there = dict(store.list())
    _refuse_full_disk(store, sum(size for name, size in files.items() if there.get(name) != size))
    for name, size in files.items():
        if name not in notes:
            say(f"{name} ({size / 2**20:.1f} MiB)")
            notes[name] = bring(source, name, store)
            store.write(NOTES, _notes(settings, inputs, notes))
    _refuse_missing_shards(store, notes)
    marker = Marker.of("stage", settings, inputs, files=notes)
    marker = write_marker(store, STAGED, marker)
    store.delete(NOTES)
    say(f"{store.url} holds {_named(marker)}, {sum(files.values()) / 2**30:.1f} GiB in {len(files)} files")
    return marker


def _find(store: Store, settings: Json) -> Marker | None:
    """The marker of this model, if all its files are still there; `BadInput` if it is another model's."""
    marker = read_marker(store, STAGED)
    if marker is None:
        return None
    same = marker.settings.get("model") == settings["model"]
    if not same or settings["revision"] not in (marker.settings.get("revision"), marker.inputs.get("commit")):
        raise BadInput(
            f"{store.url} holds {_named(marker)}; stage {settings['model']} at {settings['revision'] or 'its head'} "
            "elsewhere, or --overwrite"
        )
    sizes = dict(store.list())
    return marker if all(sizes.get(name) == file.bytes for name, file in marker.files.items()) else None


def _named(marker: Marker) -> str:
    asked, commit = marker.settings.get("revision"), marker.inputs.get("commit")
    revision = " = ".join(dict.fromkeys(part for part in (asked, commit) if part))
    return f"{marker.settings.get('model')}" + (f" at {revision}" if revision else "")


def _open(model: str, revision: str | None) -> Source:
    if model.startswith("s3://") or Path(model).is_dir():
        return stored(open_store(model))
    if "://" in model or model.startswith(("/", ".")):
        raise BadInput(f"{model}: no such directory; a model is a hub's ORG/NAME, a directory or an s3:// URL")

    from spec.target.hub_source import on_hub  # the hub's client takes a second to import

    return on_hub(model, revision)


def stored(store: Store) -> Source:
    """A model in a directory or S3, checked against its own marker where it was staged."""
    marker = read_marker(store, STAGED)
    vouched = marker.files if marker else {}

    def is_right(name: str, path: Path) -> bool:
        return not marker or file_sha256(path) == vouched[name].sha256

    files = {name: file.bytes for name, file in vouched.items()} if marker else dict(store.list())
    return Source(marker.inputs.get("commit", "") if marker else "", files, store.download, is_right)


def bring(source: Source, name: str, store: Store) -> File:
    """One file from `source` to `store`, by way of the directory itself or, for S3, of a temporary one."""
    folder = store.local_path()
    with tempfile.TemporaryDirectory() as scratch:
        path = (folder or Path(scratch)) / name
        if not (path.is_file() and path.stat().st_size == source.files[name] and source.is_right(name, path)):
            path.unlink(missing_ok=True)
            try:
                source.download(name, path)
            except FileNotFoundError as error:
                raise BadInput(f"{name}: missing at the source, which lists it; stage that one again") from error
            if path.stat().st_size != source.files[name] or not source.is_right(name, path):
                path.unlink()
                raise PassingFault(f"{name}: damaged on its way here or at its source; run this again")
        described = File(sha256=file_sha256(path), bytes=path.stat().st_size)
        if folder is None:
            store.upload(name, path)
    return described


def _notes(settings: Json, inputs: Json, files: dict[str, File]) -> bytes:
    plain = {name: file.model_dump() for name, file in files.items()}
    return json.dumps({"settings": settings, "inputs": inputs, "files": plain}, indent=1).encode()


def _read_notes(store: Store, settings: Json, inputs: Json) -> dict[str, File]:
    """What an interrupted staging of the same commit has brought already."""
    try:
        notes = json.loads(store.read(NOTES))
        if (notes["settings"], notes["inputs"]) != (settings, inputs):
            return {}
        files = {name: File(**file) for name, file in notes["files"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    sizes = dict(store.list())
    return {name: file for name, file in files.items() if sizes.get(name) == file.bytes}


def _refuse_no_model(model: str, files: dict[str, int]) -> None:
    if "config.json" not in files:
        raise BadInput(f"{model}: no config.json there: not a model that transformers loads")
    if not any(name.endswith(".safetensors") for name in files):
        raise BadInput(f"{model}: no safetensors files there; convert the model with save_pretrained first")


def _refuse_missing_shards(store: Store, files: dict[str, File]) -> None:
    if INDEX not in files:
        return
    try:
        shards = set(json.loads(store.read(INDEX))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{store.url}/{INDEX}: no weight_map in it; the source is damaged") from error
    if absent := sorted(shards - files.keys()):
        raise BadInput(f"{store.url}: {INDEX} names {absent[0]}, which the source lacks")


def _refuse_full_disk(store: Store, needed: int) -> None:
    folder = store.local_path()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
        raise PassingFault(f"{folder}: {needed / 2**30:.1f} GiB to come, {free / 2**30:.1f} GiB free; make room first")
