"""The finished shards of a run's answers, as every later step reads them.

    RUN/answers/shard-00003-of-00016/part-*.jsonl, shard.json

A line is an answer, `{"id", "messages", "turns"}`, or a reject, `{"id", "reject", "detail"}`: one for each source row;
of a row with tools one for each answer asked for, with its `tools` and the dataset's history. A turn holds its counts
and, where the server gave them, its tokens; see `is_exact`.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spec.conversations.ids import Shard
from spec.errors import BadInput
from spec.storage import Store
from spec.storage.markers import Marker, fetch, read_marker

MARKER = "shard.json"
_ID = re.compile(rb'\{"id": "([^"\\]{1,64})"')  # how the filter begins each line
_PLACE = np.dtype([("id", "S64"), ("part", "i4"), ("bytes", "i4"), ("offset", "i8")])  # of a row
EXACT = "exact"  # the count of answers that hold the server's own token ids
TOOLS = "with_tools"  # the count of answers that were asked for with tools, and the dataset's history
TOTALS = ("rows", "answers", EXACT, TOOLS, "prompt_tokens", "completion_tokens")  # all other counts are of rejects


def folder_of(shard: Shard) -> str:
    return f"answers/shard-{shard.number:05}-of-{shard.of:05}"


def folders_present(store: Store) -> dict[str, Shard]:
    """Every shard folder of the run that holds anything, finished or not."""
    found = {}
    for entry in store.list("answers"):
        folder = "/".join(entry.key.split("/")[:2])
        number, _, of = folder.removeprefix("answers/shard-").partition("-of-")
        if number.isdecimal() and of.isdecimal():
            found[folder] = Shard(int(number), int(of))
    return found


def find_shards(store: Store) -> dict[Shard, Marker]:
    """The markers of all N of the run's N shards, by shard.

    Raises `BadInput` where there are none, some are missing, or they were not made with the same settings.
    """
    present = folders_present(store)
    markers = {shard: read_marker(store, f"{folder}/{MARKER}") for folder, shard in sorted(present.items())}
    finished = {shard: marker for shard, marker in markers.items() if marker is not None}
    counts = {shard.of for shard in present.values()}
    if len(counts) > 1:
        ways = " and ".join(str(count) for count in sorted(counts))
        raise BadInput(f"{store.url}/answers: shards of {ways}: one run has one number; delete the wrong ones")
    missing = [str(Shard(number, of)) for of in counts for number in range(of) if Shard(number, of) not in finished]
    if missing or not finished:
        which = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "") if missing else "all"
        raise BadInput(
            f"{store.url}/answers: not finished (shards missing: {which}); run tools/filter_data.py with --shard I/N"
        )
    settings = {shard: {**marker.settings, "shard": None} for shard, marker in finished.items()}
    first = next(iter(settings))
    for shard, its in settings.items():
        if its != settings[first]:
            raise BadInput(
                f"{store.url}/answers: shards {first} and {shard} were made with different settings; "
                f"run tools/filter_data.py --overwrite for the one that differs from run.json"
            )
    return finished


def read_answers(store: Store) -> Iterator[dict[str, Any]]:
    """Every answer row of the run (no rejects), shard by shard and in the order of ids within each.

    Raises `BadInput` as `find_shards` does.
    """
    yield from (row for row in map(json.loads, read_lines(store)) if "reject" not in row)


def read_lines(store: Store) -> Iterator[bytes]:
    """Every row of the run, answers and rejects, as its line of JSON, in the order of `read_answers`."""
    for shard, marker in find_shards(store).items():
        yield from _lines_of(store, shard, marker)


def read_rows(store: Store, shard: Shard, marker: Marker) -> Iterator[dict[str, Any]]:
    """Every row of a finished shard, answers and rejects, in the order of ids."""
    return map(json.loads, _lines_of(store, shard, marker))


def _lines_of(store: Store, shard: Shard, marker: Marker) -> Iterator[bytes]:
    """The order is that of content, whatever order the server finished in. Each part is checked against its SHA-256.

    Takes 80 bytes of memory for each row of the shard.
    """
    with tempfile.TemporaryDirectory(prefix="answers-") as scratch:
        folder = fetch(store.at(folder_of(shard)), marker, Path(scratch))
        parts = [str(folder / part) for part in sorted(marker.files)]
        places = np.fromiter(_places_in(parts), _PLACE)
        before = b""
        for place in places["id"].argsort(kind="stable"):
            row_id, part, size, offset = places[place].item()
            if row_id == before:
                continue  # two workers of one shard, each believing the other dead, both finished it
            before = row_id
            yield _read(parts[part], size, offset)


def is_exact(row: dict[str, Any]) -> bool:
    """Whether an answer row holds the tokens of all its turns, as `regenerate` writes and `token_ids` reads them."""
    turns = row.get("turns", ())
    return bool(turns) and all("response_ids" in turn for turn in turns)


def read_counts(store: Store) -> dict[str, int]:
    """Each of `TOTALS` (`TOOLS` where there are any), and one count a reject bucket, over all shards."""
    total = {name: 0 for name in TOTALS if name != TOOLS}
    for marker in find_shards(store).values():
        for name, count in marker.counts.items():
            total[name] = total.get(name, 0) + count
    return total


def _read(path: str, size: int, offset: int) -> bytes:
    """Some bytes of a file, opened for each row: there may be more parts than files that a process may hold open.

    All workers wait for the rows read here, and a buffered file takes several times as long for one.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, size, offset)
    finally:
        os.close(file)


def _places_in(parts: list[str]) -> Iterator[tuple[bytes, int, int, int]]:
    """(id, index of its part, bytes, byte offset) of each row. Only its beginning is parsed: all is, in parallel."""
    for index, part in enumerate(parts):
        offset = 0
        with open(part, "rb") as file:
            for line in file:
                if (found := _ID.match(line)) is None:
                    name = Path(part).name
                    raise BadInput(f"{name}: what begins at byte {offset} is no row of answers; filter the shard again")
                yield found[1], index, len(line), offset
                offset += len(line)
