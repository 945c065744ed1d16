"""Finished rows on their way to the parts, and how many there are of each kind."""

import json
from collections import Counter
from typing import Any

from spec.conversations.ids import RowIndex
from spec.conversations.parts import Parts
from spec.conversations.shards import EXACT, TOOLS, TOTALS, is_exact
from spec.errors import BadInput

Line = dict[str, Any]  # an answer or a reject, as `spec.conversations.shards` describes them

FIRST = 100  # rows by which a source is judged
_NEARLY_ALL = 0.95  # of them rejected for one reason: a fault of the source or the settings, not of rows
BY_CHOICE = {"duplicate", "left_out", "scrubbed"}  # rejects that say nothing of a source
_BY_SERVER = {"too_long", "refused_by_server", "server_error"}
_ADVICE = (
    "the fault is hardly in the rows: look at the server's log, its chat template (--chat-template-kwargs) and its "
    "context length (--max-tokens)"
)
_ON_ROWS = "look at the source's rows, and name the column to read (--column)"
_ADVICE_ON = {
    "too_long": "serve the target with a longer context, or lower --max-tokens",
    "truncated": "raise --max-tokens, or keep what was cut off (--keep-truncated)",
    "refused_by_server": _ADVICE,
    "server_error": _ADVICE,
    "empty": _ADVICE,
    "bad_sampling": "mend the requests, or leave --keep-sampling out",
    "no_token_ids": "serve the target with SGLang 0.5.23, which says them",
    "scrubbed": "--scrub returns the row, or None for one that is to go: mend it, and take another --output",
}


class Results:
    """Takes each finished row once.

    Rejects are held back until the first hundred rows asked are finished: where nearly all of these are rejected for
    one reason, the source or the settings are wrong, not the rows, and none of these rows is spent. So it is with what
    a server refuses before it has answered anything, of which `doubt` rows are enough.
    """

    def __init__(self, parts: Parts, *, doubt: int):
        self.counts = Counter({"rows": 0, "answers": 0, "prompt_tokens": 0, "completion_tokens": 0})
        self._parts = parts
        self._doubt = doubt
        self._refused: list[Line] = []  # by the server, which has answered nothing
        self._held: list[Line] = []  # other rejects, before the first rows are judged
        self._first: set[str] = set()  # ids of the first rows, in the source's order, that are not finished
        self._begun = 0  # of the first rows
        self._judged: Counter[str] | None = Counter()  # what became of the first rows; None once they are all finished

    @property
    def rejects(self) -> dict[str, int]:
        return {name: count for name, count in sorted(self.counts.items()) if name not in TOTALS}

    def restore(self, index: RowIndex) -> None:
        """Take over what earlier processes finished. Raises `BadInput` for a line that is no row."""
        for line in self._parts.lines():
            try:
                row = json.loads(line)
                if index.add_finished(row["id"]):  # twins in an object store may both have finished a row
                    self._count(row)
            except (ValueError, LookupError, TypeError) as error:
                raise BadInput(
                    f"a part holds what is not a row ({error}): {line[:80]!r}; delete this shard's folder to redo it"
                ) from error

    def expect(self, row_id: str) -> None:
        """A row is about to be asked: the first hundred are those that judge the source.

        In the source's order, not as they finish: what needs no answer finishes first. Any thread may call this.
        """
        if self._begun < FIRST:
            self._first.add(row_id)
            self._begun += 1

    def add(self, row: Line) -> None:
        """Write `row`, or hold it back. Raises `BadInput` where (nearly) all rows so far are rejected."""
        reject = row.get("reject")
        if reject in _BY_SERVER and not self.counts["answers"]:
            self._refused.append(row)
            if len(self._refused) >= self._doubt:
                raise self._all_refused()
        elif reject is not None and self._judged is not None:
            self._held.append(row)
        else:
            self._write(row)
        if self._judged is not None and row["id"] in self._first:
            self._first.remove(row["id"])
            self._judged[reject or "answers"] += 1
            if self._judged.total() == FIRST:
                self._judge()
        if self._refused and self.counts["answers"]:
            self._release(self._refused)

    def end(self) -> None:
        """The source has ended. Raises `BadInput` where the server refused every row, or (nearly) all were rejected."""
        if any(row["reject"] != "too_long" for row in self._refused):
            raise self._all_refused()
        self._judge()
        self._release(self._refused)
        others = {name: count for name, count in self.rejects.items() if name not in BY_CHOICE - {"scrubbed"}}
        if others and not self.counts["answers"]:
            bucket, count = max(others.items(), key=lambda its: its[1])
            raise BadInput(f"no row is answered, {count} are {bucket}: {_ADVICE_ON.get(bucket, _ON_ROWS)}")

    def _judge(self) -> None:
        """Raises `BadInput` where nearly all of the first rows were rejected for one reason."""
        if self._judged:
            bucket, count = self._judged.most_common(1)[0]
            if bucket != "answers" and count >= _NEARLY_ALL * self._judged.total():
                detail = next(row["detail"] for row in self._held + self._refused if row["reject"] == bucket)
                raise BadInput(
                    f"{count} of the first {self._judged.total()} rows are rejected as {bucket} ({detail}), and none "
                    f"of these is recorded: {_ADVICE_ON.get(bucket, _ON_ROWS)}"
                )
        self._judged = None
        self._release(self._held)

    def _release(self, rows: list[Line]) -> None:
        released, rows[:] = rows[:], []
        for row in released:
            if self._judged is None:
                self._write(row)
            else:
                self._held.append(row)

    def _write(self, row: Line) -> None:
        # A lone surrogate, which UTF-8 cannot hold, becomes \udxxx: the same string again once the JSON is read.
        self._parts.append((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
        self._count(row)

    def _count(self, row: Line) -> None:
        self.counts["rows"] += 1
        self.counts[row.get("reject", "answers")] += 1
        if is_exact(row):
            self.counts[EXACT] += 1
        if "tools" in row:
            self.counts[TOOLS] += 1
        for turn in row.get("turns", ()):
            self.counts["prompt_tokens"] += turn["prompt_tokens"]
            self.counts["completion_tokens"] += turn["completion_tokens"]

    def _all_refused(self) -> BadInput:
        last = self._refused[-1]
        return BadInput(
            f"the server refused all of the first {len(self._refused)} rows, which are not recorded as rejects "
            f"(last: {last['reject']}: {last['detail']}); {_ADVICE}"
        )
