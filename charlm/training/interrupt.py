"""Ctrl-C and SIGTERM, handled at a moment from which training can resume."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Training stopped because of the signal `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


class Interrupt:
    """Notes a signal within `listening`; `check` raises when training is in order and saved.

    A second signal ends the program where it stands, and with it the work since the last checkpoint.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; only the main thread of a program can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted(number)
        self.signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        if self.signal is not None:
            raise Interrupted(self.signal)
