"""A run's answers as a data set: Parquet tables and a card, published, and brought back as answers that prepare reads.

One table a shard, rows in the order of ids: what is published follows from the answers alone, and takes the memory of a
few thousand rows. Rejects go along in their own tables, so that what comes back adds up to the same counts.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from spec.conversations import token_ids
from spec.conversations.ids import Shard
from spec.conversations.lineage import RUN, read_run
from spec.conversations.shards import MARKER, TOTALS, find_shards, folder_of, read_counts, read_rows
from spec.errors import BadInput
from spec.publishing import versions
from spec.publishing.manifest import Manifest
from spec.storage import Store
from spec.storage.markers import Marker, describe_files, first_difference, read_marker, write_marker

Row = dict[str, Any]
Say = Callable[[str], None]

SHARDS = "shards.json"  # the shards' markers, without their files
_TEXT, _COUNT = pa.string(), pa.int64()
_IDS = ("prompt_ids", "response_ids")  # lists of numbers here, text in a run's lines
_JSON = ("parts", "tool_calls", "tools")  # what has no fixed shape
_MESSAGE = pa.struct(
    dict.fromkeys(("role", "content", "parts", "reasoning_content", "tool_calls", "tool_call_id", "name"), _TEXT)
)
_TURN = pa.struct(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "finish_reason": _TEXT, "reasoning_tokens": _COUNT}
    | {"shared": _COUNT, **dict.fromkeys(_IDS, pa.list_(pa.int32()))}
)
_SCHEMAS = {
    "data": pa.schema(
        {"id": _TEXT, "messages": pa.list_(_MESSAGE), "turns": pa.list_(_TURN), "variant": _COUNT, "day": _TEXT}
        | {"tools": _TEXT}
    ),
    "rejects": pa.schema({"id": _TEXT, "reject": _TEXT, "detail": _TEXT}),
}
_ROWS_AT_ONCE = 1000  # and in one row group
_CARD = jinja2.Environment(
    loader=jinja2.PackageLoader("spec.publishing", "."), trim_blocks=True, lstrip_blocks=True, autoescape=False
).get_template("dataset_card.md.j2")


def publish(run: Store, destination: str, say: Say = print) -> Manifest:
    """Publish the run's answers at `destination`; raises `BadInput` unless every shard is finished."""
    shards = find_shards(run)
    with tempfile.TemporaryDirectory(prefix="publish-answers-") as scratch:
        folder = Path(scratch)
        for shard, marker in shards.items():
            say(f"shard {shard}: {marker.counts['rows']} rows")
            _write_tables(folder, shard, read_rows(run, shard, marker))
        plain = {str(shard): marker.model_dump() | {"files": {}} for shard, marker in shards.items()}
        (folder / SHARDS).write_text(json.dumps(plain, indent=1) + "\n")
        (folder / RUN).write_text(json.dumps(read_run(run), indent=1) + "\n")
        (folder / "README.md").write_text(card(read_run(run), read_counts(run), len(shards)))
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return versions.publish(destination, "answers", files, say)


def fetch(source: str, run: Store, *, version: str | None = None, say: Say = print) -> Manifest:
    """Bring published answers into `run` as its finished answers. Again writes only the shards that are missing.

    Raises `BadInput` if `run` is already another run.
    """
    with tempfile.TemporaryDirectory(prefix="fetch-answers-") as scratch:
        folder = Path(scratch)
        manifest = versions.fetch(source, "answers", folder, version=version, say=say)
        _take_over_lineage(run, json.loads((folder / RUN).read_text()))
        for name, plain in json.loads((folder / SHARDS).read_text()).items():
            _bring_back(run, folder, Shard.parse(name), Marker.model_validate(plain))
        return manifest


def card(run: Row, counts: dict[str, int], shards: int) -> str:
    """The data set's README.md: what it is, how it was made, how to use it."""
    rejects = {name: count for name, count in sorted(counts.items()) if name not in TOTALS}
    return _CARD.render(run=run, counts=counts, rejects=rejects, shards=shards, size=_size_category(counts["rows"]))


def _size_category(rows: int) -> str:
    """The hub's name for the order of magnitude: `n<1K`, `1K<n<10K`, ..."""
    names = {10**3: "1K", 10**4: "10K", 10**5: "100K", 10**6: "1M", 10**7: "10M", 10**8: "100M", 10**9: "1B"}
    below = [name for limit, name in names.items() if limit <= rows]
    above = [name for limit, name in names.items() if limit > rows]
    return "<".join([*below[-1:], "n", *above[:1]]) if above else "n>1B"


def _write_tables(folder: Path, shard: Shard, rows: Iterator[Row]) -> None:
    with ExitStack() as open_files:
        writers: dict[str, pq.ParquetWriter] = {}
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            kinds = {"data": [row for row in batch if "reject" not in row]}
            kinds["rejects"] = [row for row in batch if "reject" in row]
            for kind, chosen in kinds.items():
                if not chosen:
                    continue
                if kind not in writers:
                    path = folder / _table(kind, shard)
                    path.parent.mkdir(exist_ok=True)
                    writer = pq.ParquetWriter(path, _SCHEMAS[kind], compression="zstd")
                    writers[kind] = open_files.enter_context(writer)
                writers[kind].write_table(_to_table(kind, chosen))


def _to_table(kind: str, rows: list[Row]) -> pa.Table:
    """`rows` as a table that gives exactly the same rows back; `BadInput` for a row that it could not hold."""
    try:
        table = pa.Table.from_pylist([_published(row) for row in rows], schema=_SCHEMAS[kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError) as error:
        raise BadInput(f"a row among {rows[0]['id']} .. {rows[-1]['id']} does not fit into Parquet: {error}") from error
    for row, again in zip(rows, _from_table(table), strict=True):
        if row != again:
            raise BadInput(f"answers: row {row['id']} has a field that the published form does not know")
    return table


def _from_table(table: pa.Table | pa.RecordBatch) -> Iterable[Row]:
    return map(_unpublished, table.to_pylist())


def _published(row: Row) -> Row:
    """A run's row as the table holds it."""
    if "reject" in row:
        return row
    messages = [_as_text(_parts_apart(message)) for message in row["messages"]]
    turns = [
        {name: token_ids.decode(value) if name in _IDS else value for name, value in turn.items()}
        for turn in row["turns"]
    ]
    return _as_text(row) | {"messages": messages, "turns": turns}


def _as_text(fields: Row) -> Row:
    return {name: json.dumps(value) if name in _JSON else value for name, value in fields.items()}


def _parts_apart(message: Row) -> Row:
    """Content is text in its column; a list of parts has one of its own."""
    content = message.get("content")
    return message if not isinstance(content, list) else {**message, "content": None, "parts": content}


def _unpublished(row: Row) -> Row:
    """The row of a run again; what is not there has no value in the table."""
    row = {name: json.loads(value) if name in _JSON else value for name, value in row.items() if value is not None}
    for message in row.get("messages", ()):
        for name in [name for name, value in message.items() if value is None and name != "content"]:
            del message[name]
        message |= {name: json.loads(message[name]) for name in _JSON if name in message}
        if "parts" in message:
            message["content"] = message.pop("parts")
    for turn in row.get("turns", ()):
        for name in [name for name, value in turn.items() if value is None]:
            del turn[name]
        turn |= {name: token_ids.encode(turn[name]) for name in _IDS if name in turn}
    return row


def _table(kind: str, shard: Shard) -> str:
    split = "train" if kind == "data" else kind
    return f"{kind}/{split}-{folder_of(shard).removeprefix('answers/shard-')}.parquet"


def _take_over_lineage(run: Store, published: Row) -> None:
    there = read_run(run)
    if there and (different := first_difference(there, published)):
        raise BadInput(f"{run.url} is another run: {different}; take another folder")
    if not there:
        run.write(RUN, (json.dumps(published, indent=1) + "\n").encode())


def _bring_back(run: Store, folder: Path, shard: Shard, marker: Marker) -> None:
    place = run.at(folder_of(shard))
    there = read_marker(place, MARKER)
    if there is not None and there.digest == marker.digest:
        return
    part = folder / "part-published.jsonl"
    rows = 0
    with open(part, "w", encoding="utf-8") as file:
        for kind in _SCHEMAS:
            path = folder / _table(kind, shard)
            if not path.exists():
                continue
            for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _from_table(batch))
                rows += batch.num_rows
    if rows != marker.counts["rows"]:
        raise BadInput(f"shard {shard}: {rows} rows published, where its marker counts {marker.counts['rows']}")
    place.upload(part.name, part)
    write_marker(place, MARKER, marker.model_copy(update={"files": describe_files(folder, [part.name])}))
