"""Waiting for something that a process does, no longer than it lives."""

import subprocess
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90) -> None:
    """Until `condition()`; fails after `seconds`, or with what `process` said if it has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
