"""Which of a source's rows are asked, and in what form: a share of them, none that a suite holds, scrubbed by a hook.

    of the share? -> asked before? -> in a suite? -> the user's own hook

Everything is decided by a row's content, so that any worker decides the same; rows beyond the share are as if they were
not there, and the others are counted. A row's id is that of its content before the hook: a hook need not be repeatable.
"""

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from spec.conversations import suites
from spec.conversations.rows import UNREADABLE, Reject, Row, conversation_in, said_by_users
from spec.conversations.shapes import Read
from spec.errors import BadInput

_IDENTITY = ("name", "config", "split", "revision", "sha256")
_ALL = 2**64


@dataclass(frozen=True)
class Suite:
    """Prompts that a draft is judged on, so that it must not learn from them."""

    lineage: dict[str, Any]
    prompts: frozenset[bytes]  # hashes of each row's first user message


@dataclass(frozen=True)
class Selection:
    """`scrub` is the name of a hook, as `module:function`, which gives a row in place of a row, or None for none."""

    fraction: float = 1.0
    suites: tuple[Suite, ...] = ()
    scrub: str | None = None
    _hook: Callable[[Row], Any] | None = None

    @property
    def lineage(self) -> dict[str, Any]:
        """What `run.json` says of it; nothing where all rows are asked as they are."""
        told = {"fraction": self.fraction, "leave_out": [suite.lineage for suite in self.suites], "scrub": self.scrub}
        return {name: value for name, value in told.items() if value not in (1.0, [], None)}

    def holds(self, row_hash: str) -> bool:
        """Whether a row is of the share: by the size of its hash, whose remainder says its shard."""
        return int(row_hash[:16], 16) < self.fraction * _ALL

    def chosen(self, read: Read, *, again: bool) -> Row:
        """The row to ask; `again` where one of this content came before. Raises `Reject` for one that is not asked."""
        if UNREADABLE in read.row:
            why, _, *bucket = read.row[UNREADABLE]
            raise Reject(bucket[0] if bucket else "unreadable", why)
        if read.is_request and again:
            raise Reject("duplicate", "the same was asked before")
        if self.suites:
            asked = {prompt_hash(text) for text in said_by_users(conversation_in(read.row, read.column))}
            for suite in self.suites:
                if not suite.prompts.isdisjoint(asked):
                    raise Reject("left_out", f"{suite.lineage['name']} holds it")
        row = self._scrubbed(read.row, read.column)
        if row is None:
            raise Reject("scrubbed", "--scrub gave none")
        return row

    def _scrubbed(self, row: Row, column: str) -> Row | None:
        if self._hook is None:
            return row
        try:
            made = self._hook(row)
        except Exception as error:  # its message may quote the row, which nobody may see
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}, line {place.lineno}"
            raise BadInput(f"--scrub {self.scrub}: {type(error).__name__} in {where}; mend it for this row") from None
        if made is not None and not (isinstance(made, dict) and column in made):
            raise BadInput(f"--scrub {self.scrub}: gave {type(made).__name__}, not a row with {column}, or None")
        return made


ALL = Selection()


def select(*, fraction: float = 1.0, leave_out: list[str] | None = None, scrub: str | None = None) -> Selection:
    """Read the suites' prompts and find the hook. Raises `BadInput` that names what is wrong."""
    check_fraction(fraction)
    hook = None if scrub is None else _find_hook(scrub)
    return Selection(fraction, tuple(_read_suite(name) for name in leave_out or ()), scrub, hook)


def check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise BadInput(f"--fraction {fraction}: above 0, and 1 at most")


def _read_suite(name: str) -> Suite:
    if suites.is_named(name):
        suite = suites.read_suite(name)
        lineage, first = suite.lineage, [question.turns[0] for question in suite.questions]
    else:
        source, conversations = suites.read_own(name)
        asked = [said_by_users(conversation) for conversation in conversations]
        lineage, first = source.lineage, [texts[0] for texts in asked if texts]
        if first and len(first) < len(asked):  # what cannot be read cannot be kept out of training
            number = next(number for number, texts in enumerate(asked, start=1) if not texts)
            raise BadInput(
                f"--leave-out {name}: row {number} has no user's prompt, where others have theirs in {source.column}: "
                "give rows of another form a file of their own"
            )
    if not first:
        raise BadInput(f"--leave-out {name}: no row of it has a user's prompt")
    there = {key: lineage[key] for key in _IDENTITY if lineage.get(key) is not None}
    return Suite(there, frozenset(map(prompt_hash, first)))


def prompt_hash(text: str) -> bytes:
    """Of what a prompt says, however its white space was kept."""
    return hashlib.sha256(" ".join(text.split()).encode(errors="surrogatepass")).digest()[:16]


def _find_hook(name: str) -> Callable[[Row], Any]:
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise BadInput(f"--scrub {name}: it reads MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: no folder that lies here hides a package
    found = None
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise BadInput(f"--scrub {name}: cannot be imported from here: {type(error).__name__}: {error}") from error
    with suppress(AttributeError):
        found = getattr(found, function)
    if not callable(found):
        raise BadInput(f"--scrub {name}: {module} has no function {function}")
    return found
