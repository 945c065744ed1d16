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

from spec.conversations.json_lines import parsed, unreadable
from spec.conversations.requests import sglang_log
from spec.conversations.rows import Row
from spec.errors import BadInput

LINES = (".jsonl", ".ndjson", ".jsonl.gz")
LOG = ".log"  # of requests, and .log.DATE
KINDS = (*LINES, ".json", ".parquet", ".arrow", LOG)
_ROWS_AT_ONCE = 1000  # of a batch: less memory for long rows


class Table(NamedTuple):
    """One file: how many rows it has, None where only reading tells, and its rows, for the names of the columns wanted
    (None: all; a JSON row always comes with all).
    """

    total: int | None
    rows: Callable[[tuple[str, ...] | None], Iterator[Row]]


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, or None."""
    if sglang_log.NAME.search(path.name):
        return LOG
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
    if kind == LOG:
        return Table(None, lambda columns: _log(path))
    if kind == ".json" and _begins(path) == b"[":
        return Table(None, lambda columns: _array(path))
    return Table(None, lambda columns: read_lines(path))


def read_lines(path: Path) -> Iterator[Row]:
    """One row a line; blank lines are none. A line that is no JSON object is a row that says so."""
    with open(path, "rb") as file:
        yield from _lines(file, path.name)


def read_stream(file: IO[bytes], name: str, columns: tuple[str, ...] | None) -> Iterator[Row]:
    """The rows of an open file of JSON lines or Parquet that lies elsewhere, as `open_table` gives them."""
    return _batches(_parquet(file, columns), columns) if name.endswith(".parquet") else _lines(file, name)


def _lines(file: IO[bytes], name: str) -> Iterator[Row]:
    plain = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    return (parsed(line) for line in plain if line.strip())


def _log(path: Path) -> Iterator[Row]:
    """One row a request that SGLang logged."""
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        for line in file:
            if line.strip() and (row := sglang_log.row_in(line)) is not None:
                yield row


def _array(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); cut short? write one row a line, as .jsonl") from error
    for row in rows:
        yield row if isinstance(row, dict) else unreadable("not a JSON object", json.dumps(row))


def _parquet(path: Path | IO[bytes], columns: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
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
    for batch in batches:
        names = [name for name in batch.schema.names if columns is None or name in columns]
        batch = batch.select(names)
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            some = batch.slice(start, _ROWS_AT_ONCE)
            if not names:  # a row is a row, also where nothing of it is read
                yield from ({} for _ in range(some.num_rows))
            cells = [_cells(column) for column in some.columns]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))


def _cells(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        return [_cell(value) for value in column]  # one of them holds what Python cannot


def _cell(value: pa.Scalar) -> Any:
    """Text that is no UTF-8 keeps its bytes, as halves of characters that let its row be rejected and told from others;
    a date beyond Python's calendar is None.
    """
    for kind in (value.type, _as_bytes(value.type)):
        try:
            return _decoded(value.cast(kind).as_py())
        except (ValueError, OverflowError, TypeError, pa.ArrowException):
            pass
    return None


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """`kind` with bytes in place of text, at any depth."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return {name: _decoded(item) for name, item in value.items()} if isinstance(value, dict) else value


def _begins(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
