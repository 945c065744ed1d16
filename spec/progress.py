"""How far a step over rows is, or what it waits for: live on a terminal, elsewhere a JSON line every few seconds.

Both on stderr.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

_WINDOW = 60.0  # seconds that rates are measured over
_QUIET_SECONDS = 5.0  # between two JSON lines


class RowProgress:
    """Shows the rows of a step; `total` is known, an estimate, or None. Call `update` about once a second or more.

    `rows` is what they are called: where a row of the source is asked several times, each is an answer.
    """

    def __init__(
        self, step: str, total: int | None, *, rows: str = "rows", rows_before: int = 0, tokens_before: int = 0
    ):
        self._step, self._total, self._rows = step, total, rows
        self._terminal = sys.stderr.isatty()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = _Bar(*columns, console=Console(stderr=True), disable=not self._terminal)
        self._task = self._bar.add_task(step, total=total, completed=rows_before, left="")
        self._seen = deque([(time.monotonic(), rows_before, tokens_before)])
        self._printed_at = 0.0

    def __enter__(self) -> "RowProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def update(self, rows: int, tokens: int, *, rejects: dict[str, int], in_flight: int | None = None) -> None:
        """`rows` and `tokens` so far, earlier processes' included; `rejects` by reason."""
        now = time.monotonic()
        rows_per_s, tokens_per_s = self._rates(now, rows, tokens)
        left = None if not self._total or not rows_per_s else max(self._total - rows, 0) / rows_per_s
        if self._terminal:
            flight = "" if in_flight is None else f"{in_flight} in flight  "
            reasons = ", ".join(f"{name} {count}" for name, count in rejects.items()) or "none"
            self._bar.below = (
                f"{rows_per_s:.1f} {self._rows}/s  {tokens_per_s:.0f} tokens/s  {flight}rejects: {reasons}"
            )
            self._bar.update(self._task, completed=rows, left=f"left: {_clock(left)}")
        elif now - self._printed_at >= _QUIET_SECONDS:
            self._printed_at = now
            line = {
                "step": self._step,
                self._rows: rows,
                "of": self._total,
                f"{self._rows}_per_s": round(rows_per_s, 2),
                "tokens_per_s": round(tokens_per_s, 1),
                **({} if in_flight is None else {"in_flight": in_flight}),
                "rejects": rejects,
                "seconds_left": None if left is None else round(left),
            }
            print(json.dumps(line), file=sys.stderr, flush=True)

    def _rates(self, now: float, rows: int, tokens: int) -> tuple[float, float]:
        self._seen.append((now, rows, tokens))
        while now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        then, rows_then, tokens_then = self._seen[0]
        seconds = now - then
        return ((rows - rows_then) / seconds, (tokens - tokens_then) / seconds) if seconds > 0 else (0.0, 0.0)


class Wait:
    """Shows what is waited for, and for how long, while a block runs: nothing where it takes under five seconds.

    The block may call the wait with what it is at now.
    """

    def __init__(self, what: str):
        self._what, self._now = what, ""
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._shown = threading.Thread(target=self._show, daemon=True)

    def __call__(self, now: str) -> None:
        self._now = " ".join(now.split())

    def __enter__(self) -> "Wait":
        self._shown.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._shown.join()

    def _show(self) -> None:
        if self._over.wait(_QUIET_SECONDS):
            return
        if not sys.stderr.isatty():
            while True:
                said = {"waiting_for": self._what, "seconds": round(time.monotonic() - self._begun)}
                print(json.dumps(said | ({"now": self._now} if self._now else {})), file=sys.stderr, flush=True)
                if self._over.wait(_QUIET_SECONDS):
                    return
        console = Console(stderr=True)
        with console.status("") as status:
            while not self._over.wait(0.5):
                shown = f"{self._what}: {time.monotonic() - self._begun:.0f} s  {self._now}"
                status.update(Text(shown[: console.width - 4]))


class _Bar(Progress):
    """With a line of text below the bar: beside it, they would not fit into 80 columns."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.below)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else time.strftime("%H:%M:%S", time.gmtime(seconds))
