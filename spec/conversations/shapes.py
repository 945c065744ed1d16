"""What the rows of a file are, judged by the file's own first rows: a dataset's, with the column to read, or requests.

Of several files each has its own shape. One whose rows have no column that can be used loses its rows alone; they are
counted (`no_column`).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from spec.conversations.ids import content_hash
from spec.conversations.requests.bodies import columns_of, holds_requests, none_of, request_in
from spec.conversations.requests.sglang_log import LEVEL
from spec.conversations.rows import BESIDE, KNOWN, UNREADABLE, Row, choose_column, messages_in, said_in
from spec.conversations.tools import content, has_tools
from spec.errors import BadInput

_FIRST = 100  # rows of a file that may be unreadable before one that shows its shape


class File(NamedTuple):
    """A file of rows, or what is read as one."""

    name: str
    rows: Callable[[tuple[str, ...] | None], Iterable[Row]]  # from the first on, with the columns named (None: all)
    is_log: bool = False  # of SGLang, whose rows are requests already


class Read(NamedTuple):
    """A row, and where its conversation stands in it."""

    row: Row
    column: str
    is_request: bool  # what a server was asked: its answer is the one after its last message

    def hash(self, *, sampling: bool) -> str:
        """Of its content, the `sampling` of a request included where that is kept."""
        if self.is_request and UNREADABLE not in self.row:
            row = {name: value for name, value in self.row.items() if sampling or name != "sampling"}
            return content_hash([("request", row)])
        messages = messages_in(self.row, self.column)
        if has_tools(self.row, messages):
            return content_hash(content(self.row, messages))
        return content_hash([said_in(message) for message in messages])


class Shape(NamedTuple):
    """How a file is read; `wanted` is the column that was asked for, which of requests is where their body stands."""

    file: File
    column: str  # of its rows
    wanted: str | None
    is_request: bool
    why_not: str = ""  # it has no column that can be used

    @property
    def told(self) -> str | None:
        """What `run.json` says of the column."""
        return self.wanted if self.is_request else self.column

    def read(self) -> Iterator[Read]:
        return (Read(row, self.column, self.is_request) for row in self._rows())

    def _rows(self) -> Iterable[Row]:
        if self.why_not:
            return (row if UNREADABLE in row else none_of(row, "no_column", self.why_not) for row in self.file.rows(()))
        if self.file.is_log:
            return self.file.rows(None)
        if self.is_request:
            return (request_in(line, self.wanted) for line in self.file.rows(columns_of(self.wanted)))
        return self.file.rows((self.column, *BESIDE))


def shapes_of(name: str, files: list[File], wanted: str | None) -> list[Shape]:
    """The shape of each file of `name`. Raises `BadInput` where none can be used, saying what the first one lacks."""
    shapes, refused = [], []
    for file in files:
        try:
            shapes.append(_shape(file, wanted))
        except BadInput as error:
            refused.append(error)
            shapes.append(Shape(file, "", wanted, False, why_not=f"{file.name}: {error}"))
    if len(refused) == len(files):
        raise BadInput(f"{name}: {refused[0] if len(files) == 1 else shapes[0].why_not}")
    return shapes


def _shape(file: File, wanted: str | None) -> Shape:
    first = _first_row(file, wanted)
    if file.is_log or holds_requests(first, wanted):
        return Shape(file, "messages", wanted, True)
    return Shape(file, choose_column(first, wanted), wanted, False)


def _first_row(file: File, wanted: str | None) -> Row:
    """The first row that can be read; `BadInput` where none of the first hundred, or none of a log, can.

    Columns that nobody may read are not decoded here either, unless there are no others: then they are named.
    """
    for columns in ((*KNOWN, *((wanted,) if wanted else ())), None):
        why = None
        rows = itertools.islice(file.rows(columns), None if file.is_log else _FIRST)  # a log may begin with anything
        for number, row in enumerate(rows, start=1):
            if UNREADABLE not in row and (row or columns is None):
                return row
            if UNREADABLE in row:
                why = why or f"line {number} is {row[UNREADABLE][0]}"
        if why:
            raise BadInput(why)
    if file.is_log:
        raise BadInput(f"no request with its body; {LEVEL}")
    raise BadInput("no rows; wanted one row a line")
