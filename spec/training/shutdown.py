"""SIGTERM asks a run to save and end. The handler only takes note; the training loop acts between two steps."""

import signal
from types import FrameType


class Shutdown:
    """Listens for SIGTERM from its creation on. Ranks hear it at different steps: they must agree before they act."""

    def __init__(self) -> None:
        self.requested = False
        self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def close(self) -> None:
        signal.signal(signal.SIGTERM, self._before)
