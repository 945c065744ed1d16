"""Which row is which: ids from content, shards from ids, and the index of rows seen and finished.

A row's id never depends on its position or on when it was finished, so any worker, restarted at any time, knows which
rows are its own and which of them are done.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from spec.errors import BadInput, PassingFault


def content_hash(content: Any) -> str:
    """Hash (32 hex digits) of what a row holds, as the dataset gives it: of a conversation's (role, content) pairs."""
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


class Shard(NamedTuple):
    """Part `number` (from 0) of `of`; written `3/16`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 0 <= int(number) < int(of)):
            raise BadInput(f"--shard {text}: it reads I/N with I from 0 to N-1, for example 0/4 to 3/4")
        return cls(int(number), int(of))

    def holds(self, row_hash: str) -> bool:
        return int(row_hash[:16], 16) % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class RowIndex:
    """Occurrences of each content so far, and the ids that are finished.

    Lives in a temporary file that SQLite deletes by itself, with a bounded cache: a source may be endless.
    One thread at a time may use it.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA cache_size = -65536")  # KiB
        self._db.execute("CREATE TABLE seen (hash TEXT PRIMARY KEY, again INTEGER) WITHOUT ROWID")
        self._db.execute("CREATE TABLE finished (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")  # never committed: nothing here outlives the process

    def next_id(self, row_hash: str) -> str:
        """The id of the next row with this content: `HASH-0`, then `HASH-1`, ..."""
        count = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET again = again + 1 RETURNING again"
        with _room():
            ((again,),) = self._db.execute(count, [row_hash]).fetchall()
        return f"{row_hash}-{again}"

    def add_finished(self, row_id: str) -> bool:
        """Note a finished row; False if it was noted before."""
        with _room():
            return self._db.execute("INSERT OR IGNORE INTO finished VALUES (?)", [row_id]).rowcount == 1

    def is_finished(self, row_id: str) -> bool:
        with _room():
            return bool(self._db.execute("SELECT 1 FROM finished WHERE id = ?", [row_id]).fetchall())


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise PassingFault(f"the index of rows in the temporary folder: {error}; make room or set TMPDIR") from error
