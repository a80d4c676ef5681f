"""Ctrl-C, SIGTERM and SIGHUP, handled at a point from which training can resume."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """Training was stopped by the signal `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


class Paused(Interrupted):
    """Training was stopped by whoever has started it, who goes on with it."""


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP in this context. Does nothing outside the main thread, which alone can.

    A signal that is ignored when the program starts stays ignored: that is what nohup is for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]  # the last not on Windows
    heeded = {number for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number in heeded}
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)  # see `charlm.run.processes.held_back`
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Interrupt:
    """Remembers a signal received while `listening`; `check` raises it once a checkpoint is saved.

    A second signal stops the program at once, and the work since the last checkpoint is lost. `stopping` is another
    way to stop: it is asked at every step, and stands for a SIGTERM.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        self._signal: int | None = None
        self._stopping, self._errors = stopping, sys.stderr  # which is another one while a trial runs

    @property
    def signal(self) -> int | None:
        """The signal that was received, if any."""
        if self._signal is None and self._stopping():
            self._signal = signal.SIGTERM
        return self._signal

    @signal.setter
    def signal(self, number: int | None) -> None:
        self._signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals in this context."""
        with handled_by(self._note):
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise Interrupted(number)
        self._signal = number
        print("\nstopping after this step; interrupt again to stop at once", file=self._errors)

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if (number := self.signal) is not None:
            raise Interrupted(number)
