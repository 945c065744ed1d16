"""A draft that is there, wherever it lies, resolved to what does not change: a version, a commit, the hashes of files.

Ours or one that others published in SGLang's format; a directory, S3 or a hub. Imports no torch.
"""

from pathlib import Path

from spec.errors import BadInput
from spec.methods.files import CONFIG, WEIGHTS
from spec.methods.method import Method
from spec.publishing.drafts import place_of
from spec.publishing.manifest import Version
from spec.publishing.versions import LATEST, open_place
from spec.storage import Store, file_sha256, open_store
from spec.storage.directory import DirectoryStore
from spec.target.source import Source
from spec.target.staging import bring


def resolve(url: str, method: Method | None = None) -> Source | None:
    """The draft at `url`, as it is now; None where there is none yet.

    `url` is a folder with a draft's files (a directory, `s3://`), a place where versions are published (of `method`,
    where several have their own) or `hf://ORG/NAME`, at a REVISION with `@REVISION` behind it.
    """
    if url.startswith("hf://"):
        return _on_hub(url)
    for place in dict.fromkeys((place_of(url, method) if method else url, url)):
        store = open_store(place)
        if store.exists(LATEST):
            return _published(open_place(place, "draft").resolve(None))
    return _folder(open_store(url))


def fetch(source: Source, name: str, folder: Path) -> str:
    """Bring one file of `source` into a local folder, checked; gives its SHA-256. `BadInput` where it is not there."""
    if name not in source.files:
        raise BadInput(f"no {name} there; a draft is a folder of {CONFIG} and one file of weights, {WEIGHTS}")
    return bring(source, name, DirectoryStore(folder)).sha256


def _folder(store: Store) -> Source | None:
    sizes = dict(store.list())
    if CONFIG not in sizes:
        return None
    return Source("", sizes, store.download, lambda name, path: True)  # of ours, its marker tells what is damaged


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
