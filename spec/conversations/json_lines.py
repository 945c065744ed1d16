"""A line of JSON as a row, whatever is wrong with it: what cannot be read is a row that says why."""

import itertools
import json

from spec.conversations.rows import UNREADABLE, Row

_DEEPEST = 200  # lists and objects within one another: Python's own recursion ends not far above


def unreadable(what: str, content: str = "", bucket: str | None = None) -> Row:
    """A row in place of one that cannot be used; `content` tells it from others, `bucket` is its own for its kind."""
    return {UNREADABLE: [what, content, *([bucket] if bucket else [])]}  # without its place: its id follows from it


def parsed(line: bytes) -> Row:
    """The object that stands in a line."""
    try:
        row = json.loads(line.decode("utf-8-sig")) if _depth(line) <= _DEEPEST else None
    except (ValueError, RecursionError) as error:
        return unreadable(f"not JSON ({error}); cut short?", line.strip().hex())
    return row if isinstance(row, dict) else unreadable("not a JSON object, or nested too deep", line.strip().hex())


def _depth(line: bytes) -> int:
    """How deep lists and objects lie within one another, brackets in strings included; 0 where they are few."""
    if line.count(b"[") + line.count(b"{") <= _DEEPEST:
        return 0
    steps = (1 if byte in b"[{" else -1 for byte in line if byte in b"[]{}")
    return max(itertools.accumulate(steps))
