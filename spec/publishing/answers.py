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

from spec.conversations.ids import Shard
from spec.conversations.lineage import RUN, read_run
from spec.conversations.shards import MARKER, find_shards, folder_of, read_counts, read_rows
from spec.errors import BadInput
from spec.publishing import versions
from spec.publishing.manifest import Manifest
from spec.storage import Store
from spec.storage.markers import Marker, describe_files, first_difference, read_marker, write_marker

Row = dict[str, Any]
Say = Callable[[str], None]

SHARDS = "shards.json"  # the shards' markers, without their files
_TEXT, _COUNT = pa.string(), pa.int64()
_MESSAGE = pa.struct({"role": _TEXT, "content": _TEXT, "reasoning_content": _TEXT})
_TURN = pa.struct({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "finish_reason": _TEXT})
_SCHEMAS = {
    "data": pa.schema({"id": _TEXT, "messages": pa.list_(_MESSAGE), "turns": pa.list_(_TURN)}),
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
    totals = ("rows", "answers", "prompt_tokens", "completion_tokens")
    rejects = {name: count for name, count in sorted(counts.items()) if name not in totals}
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
        table = pa.Table.from_pylist(rows, schema=_SCHEMAS[kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError) as error:
        raise BadInput(f"a row among {rows[0]['id']} .. {rows[-1]['id']} does not fit into Parquet: {error}") from error
    for row, again in zip(rows, _from_table(table), strict=True):
        if row != again:
            raise BadInput(f"answers: row {row['id']} has a field that the published form does not know")
    return table


def _from_table(table: pa.Table | pa.RecordBatch) -> Iterable[Row]:
    for row in table.to_pylist():
        for message in row.get("messages", ()):
            if message["reasoning_content"] is None:
                del message["reasoning_content"]
        yield row


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
