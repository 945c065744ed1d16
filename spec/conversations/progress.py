"""How far a step is: a bar on a terminal, elsewhere one JSON line every few seconds (both on stderr)."""

import json
import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

_WINDOW = 60.0  # seconds that rates are measured over
_QUIET_SECONDS = 5.0  # between two JSON lines


class FilterProgress:
    """Shows rows of this shard; `total` is an estimate, or None. Call `update` about once a second."""

    def __init__(self, total: int | None, *, rows_before: int = 0):
        self._total = total
        self._terminal = sys.stderr.isatty()
        columns = (
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}", markup=False),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._terminal)
        self._task = self._bar.add_task("filter", total=total, completed=rows_before, rates="")
        self._samples: deque[tuple[float, int, int]] = deque()  # (time, rows, tokens)
        self._printed_at = 0.0

    def __enter__(self) -> "FilterProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def update(self, rows: int, tokens: int, in_flight: int, rejects: dict[str, int]) -> None:
        """`rows` and completion `tokens` so far, earlier processes' included."""
        now = time.monotonic()
        rows_per_s, tokens_per_s = self._rates(now, rows, tokens)
        left = None if not self._total or not rows_per_s else max(self._total - rows, 0) / rows_per_s
        if self._terminal:
            reasons = ", ".join(f"{name} {count}" for name, count in rejects.items()) or "none"
            shown_left = "?" if left is None else time.strftime("%H:%M:%S", time.gmtime(left))
            if left is not None and left >= 86400:
                shown_left = f"{left / 86400:.1f} days"
            rates = (
                f"{rows_per_s:.1f} rows/s  {tokens_per_s:.0f} tokens/s  {in_flight} in flight  "
                f"rejects: {reasons}  left: {shown_left}"
            )
            self._bar.update(self._task, completed=rows, rates=rates)
        elif now - self._printed_at >= _QUIET_SECONDS:
            self._printed_at = now
            line = {
                "rows": rows,
                "of": self._total,
                "rows_per_s": round(rows_per_s, 2),
                "tokens_per_s": round(tokens_per_s, 1),
                "in_flight": in_flight,
                "rejects": rejects,
                "seconds_left": None if left is None else round(left),
            }
            print(json.dumps(line), file=sys.stderr, flush=True)

    def _rates(self, now: float, rows: int, tokens: int) -> tuple[float, float]:
        self._samples.append((now, rows, tokens))
        while now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        then, rows_then, tokens_then = self._samples[0]
        seconds = now - then
        return ((rows - rows_then) / seconds, (tokens - tokens_then) / seconds) if seconds > 0 else (0.0, 0.0)
