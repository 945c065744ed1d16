"""Files of rows, read as rows: what is odd in one row is that row's alone, and nothing is made of columns nobody reads.

JSONL is parsed line by line, never typed by block: a list among ten thousand texts would make a table's reader turn all
of them into JSON. Of Parquet and Arrow only the columns that are read are decoded, and row by row where a whole batch
cannot be.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spec.conversations.rows import UNREADABLE, Row
from spec.errors import BadInput

LINES = (".jsonl", ".ndjson", ".jsonl.gz")
KINDS = (*LINES, ".json", ".parquet", ".arrow")
_ROWS_AT_ONCE = 1000  # of a batch: less memory for long rows


class Table(NamedTuple):
    """One file: how many rows it has, None where only reading tells, and its rows, for the names of the columns wanted
    (None: all; a JSON row always comes with all).
    """

    total: int | None
    rows: Callable[[tuple[str, ...] | None], Iterator[Row]]


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, or None."""
    return next((kind for kind in KINDS if path.name.lower().endswith(kind)), None)


def open_table(path: Path) -> Table:
    """The rows of a file that `kind_of` knows. Raises `BadInput` for a file that is damaged as a whole."""
    kind = kind_of(path)
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: empty file; wanted one row a line")
    if kind == ".parquet":
        return Table(pq.read_metadata(path).num_rows, lambda columns: _batches(_parquet(path, columns), columns))
    if kind == ".arrow":
        return Table(None, lambda columns: _batches(_arrow(path), columns))
    if kind == ".json" and _begins(path) == b"[":
        return Table(None, lambda columns: _array(path))
    return Table(None, lambda columns: read_lines(path))


def read_lines(path: Path) -> Iterator[Row]:
    """One row a line; blank lines are none. A line that is no JSON object is a row that says so."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parsed(line, number)


def unreadable(what: str, content: str = "") -> Row:
    """A row in place of one that cannot be read; `content` tells it from others."""
    return {UNREADABLE: [what, content]}


def _parsed(line: bytes, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return unreadable(f"line {number} is not JSON ({error}); cut short?", line.hex())
    return row if isinstance(row, dict) else unreadable(f"line {number} is not a JSON object", line.hex())


def _array(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); cut short? write one row a line, as .jsonl") from error
    for number, row in enumerate(rows, start=1):
        yield row if isinstance(row, dict) else unreadable(f"element {number} is not a JSON object", json.dumps(row))


def _parquet(path: Path, columns: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        there = [name for name in file.schema_arrow.names if columns is None or name in columns]
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=there)


def _arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        try:
            yield from pa.ipc.open_stream(file)
            return
        except pa.ArrowInvalid:
            file.seek(0)
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _batches(batches: Iterable[pa.RecordBatch], columns: tuple[str, ...] | None) -> Iterator[Row]:
    number = 0
    for batch in batches:
        names = [name for name in batch.schema.names if columns is None or name in columns]
        batch = batch.select(names)
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            some = batch.slice(start, _ROWS_AT_ONCE)
            yield from _rows_of(some, number + start)
        number += batch.num_rows


def _rows_of(batch: pa.RecordBatch, before: int) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        pass  # one row of them holds what Python cannot: half a character, a date beyond its calendar
    for place in range(batch.num_rows):
        try:
            (row,) = batch.slice(place, 1).to_pylist()
        except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
            row = unreadable(f"row {before + place + 1} cannot be decoded ({error})", str(before + place))
        yield row


def _begins(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _open(path: Path) -> IO[bytes]:
    opened: Any = (gzip.open if path.name.endswith(".gz") else open)(path, "rb")
    return opened
