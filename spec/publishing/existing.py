"""A draft that is there, wherever it lies, resolved to what does not change: a version, a commit, the hashes of files.

Ours or one that others published in SGLang's format; a directory, S3 or a hub. Imports no torch.
"""

import json
from hashlib import sha256
from pathlib import Path

from spec.errors import BadInput
from spec.methods.files import CONFIG, MARKER, WEIGHTS
from spec.methods.method import Method
from spec.publishing.drafts import place_of
from spec.publishing.manifest import Version
from spec.publishing.versions import LATEST, open_place
from spec.storage import Store, file_sha256, open_store
from spec.storage.directory import DirectoryStore
from spec.storage.markers import Json
from spec.target.source import Source
from spec.target.staging import INDEX, bring


def resolve(url: str, method: Method | None = None) -> Source | None:
    """The draft at `url`, as it is now; None where there is none yet.

    `url` is a folder with a draft's files (a directory, `s3://`), a place where versions are published (of `method`,
    where several have their own) or `hf://ORG/NAME`, at a REVISION with `@REVISION` behind it.
    """
    places = dict.fromkeys((place_of(url, method) if method else url, url))
    if url.startswith("hf://"):
        return next(filter(None, map(_on_hub, places)), None)
    for place in places:
        store = open_store(place)
        if store.exists(LATEST):
            return _published(open_place(place, "draft").resolve(None))
    return _folder(open_store(url))


def fetch(source: Source, name: str, folder: Path) -> str:
    """Bring one file of `source` into a local folder, checked; gives its SHA-256. `BadInput` where it is not there."""
    if name not in source.files:
        raise BadInput(f"no {name} there; a draft is a folder of {CONFIG} and its weights, {WEIGHTS} or {INDEX}")
    return bring(source, name, DirectoryStore(folder)).sha256


def fetch_rest(source: Source, folder: Path) -> Json:
    """Bring the weights to where the config is, and our marker if there is one; gives which draft that is, its version
    and its SHA-256: of the one file of weights, or of the list of those of several.
    """
    if MARKER in source.files:
        fetch(source, MARKER, folder)
    if INDEX in source.files:
        fetch(source, INDEX, folder)
    hashes = {name: fetch(source, name, folder) for name in weight_files(folder)}
    listed = "".join(f"{its}  {name}\n" for name, its in hashes.items())
    return {"version": source.commit, "sha256": hashes.get(WEIGHTS) or sha256(listed.encode()).hexdigest()}


def weight_files(folder: Path) -> list[str]:
    """The files that hold the weights of a draft in `folder`: those that its index names, as the server goes by it."""
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{index}: not an index of weights, which has a weight_map of file names") from error
    if outside or not names:
        raise BadInput(
            f"{index}: its weight_map names {outside[0] if outside else 'no file'}; a file beside it is meant"
        )
    return names


def _folder(store: Store) -> Source | None:
    if not store.exists(CONFIG):
        return None
    return Source(
        "", dict(store.list()), store.download, lambda name, path: True
    )  # of ours, its marker tells what is damaged


def _published(version: Version) -> Source:
    files = version.manifest.files
    sizes = {name: file.bytes for name, file in files.items()}
    is_right = lambda name, path: file_sha256(path) == files[name].sha256  # noqa: E731
    return Source(version.manifest.version, sizes, version.download, is_right)


def _on_hub(url: str) -> Source | None:
    name, _, revision = url.removeprefix("hf://").strip("/").partition("@")
    if name.count("/") != 1:
        raise BadInput(f"{url}: a draft on the hub reads hf://ORG/NAME or hf://ORG/NAME@REVISION")

    from spec.target.hub_source import is_there, on_hub  # the hub's client takes a second to import

    source = on_hub(name, revision or None) if is_there(name) else None
    return source if source and CONFIG in source.files else None
