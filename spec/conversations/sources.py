"""Where raw rows come from: a dataset of the hub, or files on this machine, all through `datasets`, as a stream.

Also what identifies them in `run.json`: the hub's commit, or the SHA-256 of local files.
"""

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
from spec.conversations.rows import BESIDE, KNOWN, UNREADABLE, Row, choose_column
from spec.conversations.tables import KINDS, LINES, kind_of, open_table, read_stream
from spec.errors import BadInput, PassingFault
from spec.storage import file_sha256, open_store

_STREAMED = (*LINES, ".parquet")
_NETWORK = (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)


class _Found(NamedTuple):
    lineage: dict[str, Any]
    total: int | None
    rows: Callable[[tuple[str, ...] | None], Iterable[Row]]  # from the first on, with the columns named (None: all)


@dataclass(frozen=True)
class Source:
    """Rows of a dataset, and the column to read.

    `lineage` goes into `run.json`; there are `total` rows, or None where nobody knows beforehand.
    """

    lineage: dict[str, Any]
    total: int | None
    column: str
    _open: Callable[[], Iterable[Row]]

    def rows(self) -> Iterator[Row]:
        """From the first row on. Raises `BadInput` for what cannot be read, `PassingFault` for the network."""
        with _told(self.lineage["name"]):
            yield from self._open()


def open_source(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    limit: int | None = None,
) -> Source:
    """Find a dataset: a `.jsonl`, `.parquet` or `.arrow` file, a `save_to_disk` folder, a folder of files, or the hub.

    A hub dataset without `revision` is pinned to the commit that its main branch has now. `column` None chooses one by
    the first row. `limit` keeps the first rows. Raises `BadInput`, or `PassingFault` for the network.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit {limit}: at least 1 row is needed")
    _quiet()
    path = Path(name).expanduser()
    with _told(name):
        if path.exists() or name.startswith(("/", "./", "../", "~")) or kind_of(path):
            found = _local(path, split)
        else:
            found = _hub(name, split, config, revision)
        first = _first_row(name, split, found, column)
    column = choose_column(first, column)
    lineage = {**found.lineage, "column": column, "limit": limit}
    total = found.total if limit is None or found.total is None else min(limit, found.total)
    return Source(lineage, total, column, lambda: itertools.islice(found.rows((column, *BESIDE)), limit))


def _first_row(name: str, split: str, found: _Found, column: str | None) -> Row:
    """The first row that can be read; `BadInput` where the first hundred cannot.

    Columns that nobody may read are not decoded here either, unless there are no others: then they are named.
    """
    for columns in ((*KNOWN, *((column,) if column else ())), None):
        why = None
        for number, row in enumerate(itertools.islice(found.rows(columns), 100), start=1):
            if UNREADABLE not in row:
                return row
            why = why or f"line {number} is {row[UNREADABLE][0]}"
        if why:
            raise BadInput(f"{name}: {why}")
    raise BadInput(f"{name}: no rows in split {split}; wanted one row a line")


@contextmanager
def at_hand(name: str) -> Iterator[str]:
    """`name`, or a local copy, for as long as the block, of the file that an `s3://` URL names."""
    if not name.startswith("s3://"):
        yield name
        return
    folder, _, file = name.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="dataset-") as scratch:
        try:
            open_store(folder).download(file, Path(scratch) / file)
        except FileNotFoundError as error:
            raise BadInput(f"{name}: no such object") from error
        yield str(Path(scratch) / file)


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
        return _Found(lineage, total, lambda columns: _streamed(urls, columns))
    rows = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True).decode(False)
    return _Found(lineage, total, lambda columns: rows)


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
        if kind_of(path) is None:
            raise BadInput(f"{path}: unknown kind of file; wanted {', '.join(KINDS)} or a save_to_disk folder")
        return _of_files({"name": path.name, "split": split, "sha256": file_sha256(path)}, [path])
    lineage = {"name": path.name, "split": split, "sha256": _folder_sha256(path)}
    return _of_files(lineage, files_of(path, split))


def _of_files(lineage: dict[str, Any], paths: list[Path]) -> _Found:
    tables = [open_table(path) for path in paths]
    totals = [table.total for table in tables]
    total = None if None in totals else sum(total for total in totals if total is not None)
    if total is None and len(paths) == 1:
        total = _count_lines(paths[0])
    return _Found(
        lineage, total, lambda columns: itertools.chain.from_iterable(table.rows(columns) for table in tables)
    )


def _count_lines(path: Path) -> int | None:
    if not path.name.endswith(".jsonl"):
        return None
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _folder_sha256(folder: Path) -> str:
    """Hash of the names and contents of every data file of a folder, at any depth."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(("cache-", ".")):
            digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


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
