"""Work in several processes, with the results in the order of the items, whatever finishes first."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from spec.errors import PassingFault

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items a process may be ahead of the reader: bounds memory


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`map(work, items)` in `processes` processes, reading `items` only a little ahead.

    The processes are forked at the first item, so `work` reaches them without being pickled or loaded again. Raises
    what `work` raises, and `PassingFault` where a process was killed.
    """
    if processes == 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (work,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= processes * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PassingFault("a process was killed, most often for memory: run again with fewer --processes") from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:
    return _work(item)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever for the next item."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
