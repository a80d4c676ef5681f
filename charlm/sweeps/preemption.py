"""A cluster takes its machine back: the job saves and ends, and submitit puts it into the queue again."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Preemption:
    """In a job that submitit has started, notes SIGUSR1 and SIGUSR2 instead of its handler, which would end it at once.

    Which of them is sent depends on the cluster: see ``SUBMITIT_PREEMPT_SIGNAL``.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handler: Any = None
        if "SUBMITIT_EXECUTOR" not in os.environ:
            return
        numbers = (signal.SIGUSR1, signal.SIGUSR2)
        self._handler = next((found for number in numbers if callable(found := signal.getsignal(number))), None)
        if self._handler is not None:
            for number in numbers:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def requeue(self) -> None:
        """Hand the signal on: submitit ends this process, which the cluster starts again with the same job.

        Raises submitit's UncompletedJobError if it was out of time too often.
        """
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        self._handler(self.number, None)
