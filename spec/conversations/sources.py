"""Where raw rows come from: a dataset of the hub, or files on this machine, all through `datasets`, as a stream.

Also what identifies them in `run.json`: the hub's commit, or the SHA-256 of local files.
"""

import glob
import gzip
import hashlib
import itertools
import logging
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import httpx
import pyarrow as pa
import requests
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from spec.conversations.folders import files_of
from spec.conversations.patterns import is_pattern, local_files, split_pattern, stored_files
from spec.conversations.requests.sglang_log import LEVEL
from spec.conversations.rows import Row
from spec.conversations.shapes import File, Read, shapes_of
from spec.conversations.tables import KINDS, LINES, LOG, kind_of, open_table, read_stream
from spec.errors import BadInput, PassingFault
from spec.storage import check_no_secret, file_sha256, open_store

_STREAMED = (*LINES, ".parquet")
_NETWORK = (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)


class _Found(NamedTuple):
    lineage: dict[str, Any]
    total: int | None
    files: list[File]


@dataclass(frozen=True)
class Source:
    """Rows of a dataset, and the column to read.

    `lineage` goes into `run.json`; there are `total` rows, or None where nobody knows beforehand.
    """

    lineage: dict[str, Any]
    total: int | None
    column: str  # of the first file
    _open: Callable[[], Iterable[Read]]
    holds_requests: bool = False

    def read(self) -> Iterator[Read]:
        """From the first row on. Raises `BadInput` for what cannot be read, `PassingFault` for the network."""
        with _told(self.lineage["name"]):
            yield from self._open()

    def rows(self) -> Iterator[Row]:
        return (read.row for read in self.read())


def open_source(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    limit: int | None = None,
    pattern: bool = False,
) -> Source:
    """Find a dataset: a `.jsonl`, `.parquet` or `.arrow` file, a `save_to_disk` folder, a folder of files, or the hub.

    Or requests: SGLang's logs, OpenAI batch files, gateways' JSON lines. With `pattern` the name may stand for several
    files. A hub dataset without `revision` is pinned to the commit that its main branch has now. `column` None chooses
    one by the first row, of each file its own. `limit` keeps the first rows. Raises `BadInput`, or `PassingFault` for
    the network.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit {limit}: at least 1 row is needed")
    check_no_secret(name)
    _quiet()
    path = Path(name).expanduser()
    with _told(name):
        if pattern and is_pattern(name):
            found = _matching(name, split)
        elif _is_path(name):
            found = _local(path, split)
        else:
            found = _hub(name, split, config, revision)
        shapes = shapes_of(name, found.files, column)
    total = found.total if limit is None or found.total is None else min(limit, found.total)
    usable = [shape for shape in shapes if not shape.why_not]
    columns = list(dict.fromkeys(shape.told for shape in usable))
    are_requests = any(shape.is_request for shape in usable)
    lineage = {**found.lineage, "column": columns[0] if len(columns) == 1 else columns, "limit": limit}
    lineage |= {"requests": True} if are_requests else {}
    rows = lambda: itertools.chain.from_iterable(shape.read() for shape in shapes)  # noqa: E731
    return Source(lineage, total, usable[0].column, lambda: itertools.islice(rows(), limit), are_requests)


def whole_rows(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> tuple[dict[str, Any], Iterator[Row]]:
    """A dataset's lineage, and its rows with all of their columns. Finds it, and raises, as `open_source` does."""
    check_no_secret(name)
    _quiet()
    with _told(name):
        path = Path(name).expanduser()
        found = _local(path, split) if _is_path(name) else _hub(name, split, config, revision)
    return found.lineage, _whole(found)


def _whole(found: _Found) -> Iterator[Row]:
    with _told(found.lineage["name"]):
        for file in found.files:
            yield from file.rows(None)


def _is_path(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or name.startswith(("/", "./", "../", "~")) or kind_of(path) is not None


@contextmanager
def at_hand(name: str, *, pattern: bool = False) -> Iterator[str]:
    """`name`, or a local copy, for as long as the block, of an `s3://` URL's file or, by `pattern`, files."""
    check_no_secret(name)
    if not name.startswith("s3://"):
        yield name
        return
    if pattern and is_pattern(name):
        (store, keys), rest = stored_files(name), split_pattern(name)[1]
    else:
        folder, _, file = name.rpartition("/")
        if folder == "s3:/" or not file:
            raise BadInput(f"{name}: no file is named; it reads s3://BUCKET/PREFIX/FILE.jsonl")
        store, keys, rest = open_store(folder), [file], None
    with tempfile.TemporaryDirectory(prefix="dataset-") as scratch:
        for key in keys:
            try:
                store.download(key, Path(scratch) / key)
            except FileNotFoundError as error:
                raise BadInput(f"{store.url}/{key}: no such object") from error
        yield f"{glob.escape(scratch)}/{rest}" if rest else str(Path(scratch) / keys[0])


def _hub(name: str, split: str, config: str | None, revision: str | None) -> _Found:
    if datasets.config.HF_HUB_OFFLINE:
        raise BadInput(f"{name}: no such file, and HF_HUB_OFFLINE forbids the hub; unset it, or name a local copy")
    commit = HfApi().dataset_info(name, revision=revision).sha
    builder = datasets.load_dataset_builder(name, config, revision=commit)
    info = (builder.info.splits or {}).get(split)
    lineage = {"name": name, "config": config, "split": split, "revision": commit}
    total = info.num_examples if info else None
    urls = [str(url) for url in (builder.config.data_files or {}).get(split, ())]
    if urls and all(kind_of(Path(url)) in _STREAMED for url in urls):
        return _Found(lineage, total, [File(name, lambda columns: _streamed(urls, columns))])
    rows = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True).decode(False)
    return _Found(lineage, total, [File(name, lambda columns: rows)])


def _streamed(urls: list[str], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """Rows of `hf://` URLs, which hold their commit: `datasets` itself would type JSON by block."""
    for url in urls:
        with HfFileSystem().open(url, "rb") as file:
            yield from read_stream(file, url, columns)


def _local(path: Path, split: str) -> _Found:
    """A path is a path, whatever characters it has: none of them makes it a pattern."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_file():
        if split != "train":
            raise BadInput(f"{path}: a file has no split {split!r}; leave --dataset-split out")
        _check_kind(path)
        return _of_files({"name": path.name, "split": split, "sha256": file_sha256(path)}, [path])
    files = files_of(path, split)
    are_logs = kind_of(files[0]) == LOG  # then only they are opened: what else lies there may be dumps
    sha256 = _files_sha256(path, files) if are_logs else _folder_sha256(path)
    return _of_files({"name": path.name, "split": split, "sha256": sha256}, files)


def _check_kind(path: Path) -> None:
    if path.suffix in (".pkl", ".pickle"):
        raise BadInput(f"{path}: a pickle is never opened, since that runs what stands in it; {LEVEL}")
    if kind_of(path) is None:
        raise BadInput(f"{path}: unknown kind of file; wanted {', '.join(KINDS)} or a save_to_disk folder")


def _matching(pattern: str, split: str) -> _Found:
    paths = local_files(pattern)
    if split != "train":
        raise BadInput(f"{pattern}: files have no split {split!r}; leave --dataset-split out")
    for path in paths:
        _check_kind(path)
    folder, rest = split_pattern(pattern)
    base = Path(folder or ("/" if pattern.startswith("/") else ".")).expanduser()
    return _of_files({"name": rest, "split": split, "sha256": _files_sha256(base, paths)}, paths)


def _of_files(lineage: dict[str, Any], paths: list[Path]) -> _Found:
    logs = [kind_of(path) == LOG for path in paths]
    if any(logs) and not all(logs):
        raise BadInput(f"{lineage['name']}: logs and other files together; give each kind its own name")
    tables = [open_table(path) for path in paths]
    totals = [table.total for table in tables]
    total = None if None in totals else sum(total for total in totals if total is not None)
    if total is None and len(paths) == 1:
        total = _count_lines(paths[0])
    if all(logs):  # hour after hour of one server, or of several alike
        rows = lambda columns: itertools.chain.from_iterable(table.rows(columns) for table in tables)  # noqa: E731
        return _Found(lineage, total, [File(lineage["name"], rows, is_log=True)])
    files = [File(path.name, table.rows) for path, table in zip(paths, tables, strict=True)]
    return _Found(lineage, total, files)


def _count_lines(path: Path) -> int | None:
    if not path.name.endswith(".jsonl"):
        return None
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _files_sha256(folder: Path, paths: list[Path]) -> str:
    """Hash of the names and contents of files below a folder."""
    lines = (f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folder_sha256(folder: Path) -> str:
    """Hash of the names and contents of every data file of a folder, at any depth."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("cache-", ".")))
    return _files_sha256(folder, paths)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what `datasets` raises into one line. Its base classes are broad, so the order matters."""
    try:
        yield
    except DatasetNotFoundError as error:
        raise BadInput(f"{name}: neither a file here nor a readable dataset of the hub: {_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        kind = PassingFault if status >= 500 or status == 429 else BadInput
        raise kind(f"{name}: the hub answers {status}: {_line(error)}") from error
    except _NETWORK as error:
        raise PassingFault(f"{name}: not a file here, and the hub cannot be reached: {_line(error)}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadInput(f"{name}: damaged: {_line(error)}; fetch it again") from error
    except (datasets.exceptions.DatasetsError, pa.ArrowException, FileNotFoundError, ValueError, KeyError) as error:
        raise BadInput(f"{name}: cannot be read: {_line(error)}") from error


def _quiet() -> None:
    """Keep `datasets` from drawing bars, logging tracebacks, and importing torch to ask who reads."""
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    datasets.config.TORCH_AVAILABLE = False


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
