"""Finished rows on their way to the parts, and how many there are of each kind."""

import json
from collections import Counter
from typing import Any

from spec.conversations.ids import RowIndex
from spec.conversations.parts import Parts
from spec.conversations.shards import EXACT, TOOLS, TOTALS, is_exact
from spec.errors import BadInput

Line = dict[str, Any]  # an answer or a reject, as `spec.conversations.shards` describes them

_BY_SERVER = {"too_long", "refused_by_server", "server_error"}
_ADVICE = (
    "the fault is hardly in the rows: look at the server's log, its chat template (--chat-template-kwargs) and its "
    "context length (--max-tokens)"
)


class Results:
    """Takes each finished row once.

    What a server refuses before it has answered anything is held back: if it refuses `doubt` rows and answers none,
    the settings are wrong, not the rows, and none of these rows is spent.
    """

    def __init__(self, parts: Parts, *, doubt: int):
        self.counts = Counter({"rows": 0, "answers": 0, "prompt_tokens": 0, "completion_tokens": 0})
        self._parts = parts
        self._doubt = doubt
        self._refused: list[Line] = []

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

    def add(self, row: Line) -> None:
        """Write `row`. Raises `BadInput` where the server has refused everything so far."""
        if row.get("reject") in _BY_SERVER and not self.counts["answers"]:
            self._refused.append(row)
            if len(self._refused) >= self._doubt:
                raise self._all_refused()
            return
        self._write(row)
        if self._refused and self.counts["answers"]:
            self._write_refused()

    def end(self) -> None:
        """The source has ended. Raises `BadInput` where the server refused every row, other than for its length."""
        if any(row["reject"] != "too_long" for row in self._refused):
            raise self._all_refused()
        self._write_refused()

    def _write_refused(self) -> None:
        for row in self._refused:
            self._write(row)
        self._refused = []

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
