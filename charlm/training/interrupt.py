"""Ctrl-C, SIGTERM and SIGHUP, handled at a point from which training can resume."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Training was stopped by the signal `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


class Interrupt:
    """Remembers a signal received while `listening`; `check` raises it once a checkpoint is saved.

    A second signal stops the program at once, and the work since the last checkpoint is lost.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP in this context. Does nothing outside the main thread, which alone can.

        A SIGHUP that is ignored when the program starts stays ignored: that is what nohup is for.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            numbers.append(hangup)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted(number)
        self.signal = number
        print("\nstopping after this step; interrupt again to stop at once", file=sys.stderr)

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.signal is not None:
            raise Interrupted(self.signal)
