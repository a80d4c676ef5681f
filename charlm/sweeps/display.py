"""What the terminal shows while jobs run: all of them in one live table, or a line for each that begins or ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live

from charlm.output import counted, duration
from charlm.sweeps.folder import JobRecord
from charlm.sweeps.results import described
from charlm.sweeps.tables import live_table

REFRESH = 0.5  # seconds between two looks at the jobs


def new_console() -> Console:
    """The terminal, or lines of 120 columns in a file; also while jobs send their output elsewhere."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


class Display:
    """Shows the `records` of jobs in this context, with the settings `names`; `noun` is what a job is called."""

    def __init__(
        self, console: Console, records: Callable[[], list[JobRecord]], names: Sequence[str], noun: str = "job"
    ) -> None:
        self.console, self.records, self.names, self.noun = console, records, names, noun
        # Of those that run, it is said that they go on.
        self._said = {r.number: self._line(r) for r in records() if r.status != "running"}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._end.wait(REFRESH):
                self.say(self.records())
            return
        # Its own redirection would end up in the log of a job.
        live = Live(
            console=self.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with live:
            while not self._end.wait(REFRESH):
                table = live_table(self.records(), self.names, self.console.height - 3, self.noun)
                live.update(table, refresh=True)

    def say(self, records: Sequence[JobRecord]) -> None:
        """Print a line for every job that began or ended, unless a live table showed it."""
        for record in records if not self.console.is_terminal else ():
            line = self._line(record)
            if record.status != "waiting" and line != self._said.get(record.number):
                self._said[record.number] = line
                self.console.print(line, markup=False, soft_wrap=True)

    def _line(self, record: JobRecord) -> str:
        line = f"{self.noun} {record.number} {record.status}"
        if record.status in ("finished", "pruned") and record.nats is not None:
            line += f", {record.nats:.4f} nats/char, {counted(record.epoch, 'epoch')}, {duration(record.seconds)}"
        if record.error:
            line += f": {record.error}"
        return f"{line}   {described(record.overrides, self.names)}".rstrip()
