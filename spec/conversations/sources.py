"""Where raw rows come from: a dataset of the hub, or files on this machine, all through `datasets`, as a stream.

Also what identifies them in `run.json`: the hub's commit, or the SHA-256 of local files.
"""

import hashlib
import itertools
import json
import logging
import tempfile
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
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from spec.conversations.rows import Row, choose_column
from spec.errors import BadInput, PassingFault
from spec.storage import file_sha256, open_store

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_NETWORK = (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)


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
        if path.exists() or name.startswith(("/", "./", "../", "~")) or path.suffix in _READERS:
            found = _local(path, split)
        else:
            found = _hub(name, split, config, revision)
        first = next(iter(found.rows), None)
    if first is None:
        raise BadInput(f"{name}: no rows in split {split}")
    column = choose_column(first, column)
    lineage = {**found.lineage, "column": column, "limit": limit}
    total = found.total if limit is None or found.total is None else min(limit, found.total)
    return Source(lineage, total, column, lambda: itertools.islice(found.rows, limit))


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


class _Found(NamedTuple):
    lineage: dict[str, Any]
    total: int | None
    rows: Iterable[Row]  # from the first on, each time it is iterated


def _hub(name: str, split: str, config: str | None, revision: str | None) -> _Found:
    if datasets.config.HF_HUB_OFFLINE:
        raise BadInput(f"{name}: no such file, and HF_HUB_OFFLINE forbids the hub; unset it, or name a local copy")
    commit = HfApi().dataset_info(name, revision=revision).sha
    rows = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
    info = (rows.info.splits or {}).get(split)
    lineage = {"name": name, "config": config, "split": split, "revision": commit}
    return _Found(lineage, info.num_examples if info else None, rows)


def _local(path: Path, split: str) -> _Found:
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_file():
        return _file(path, split)
    lineage = {"name": path.name, "split": split, "sha256": _folder_sha256(path)}
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    if not saved:
        rows = datasets.load_dataset(str(path), split=split, streaming=True)
        return _Found(lineage, None, rows)
    table = datasets.load_from_disk(str(path))
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise BadInput(f"{path}: no split {split!r}; it has {', '.join(table)}; name one with --dataset-split")
        table = table[split]
    elif split != "train":
        raise BadInput(f"{path}: holds one dataset, without splits; leave --dataset-split out")
    return _Found(lineage, len(table), table)


def _file(path: Path, split: str) -> _Found:
    if path.suffix not in _READERS:
        raise BadInput(f"{path}: unknown kind of file; wanted {', '.join(_READERS)} or a save_to_disk folder")
    if split != "train":
        raise BadInput(f"{path}: a file has no split {split!r}; leave --dataset-split out")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: empty file; wanted one row a line")
    total = None
    if path.suffix == ".jsonl":
        total = _check_lines(path)
    elif path.suffix == ".parquet":
        total = pa.parquet.read_metadata(path).num_rows
    lineage = {"name": path.name, "split": split, "sha256": file_sha256(path)}
    reader = _READERS[path.suffix]
    rows = datasets.load_dataset(reader, data_files={"train": [str(path)]}, split="train", streaming=True)
    return _Found(lineage, total, rows)


def _check_lines(path: Path) -> int:
    """Count the rows, and find the line that is no row before anything was asked for those above it."""
    rows = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            rows += 1
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}: line {number} is not JSON ({error}); cut short? mend or remove it") from error
            if not isinstance(row, dict):
                raise BadInput(f"{path}: line {number} is not a JSON object; wanted one row with named columns a line")
    if not rows:
        raise BadInput(f"{path}: only blank lines; wanted one row a line")
    return rows


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
