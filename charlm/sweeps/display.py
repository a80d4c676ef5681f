"""What is shown while jobs run: all of them in one live table, or a line for each that begins or ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from charlm.output import counted, duration
from charlm.sweeps import results
from charlm.sweeps.folder import JobRecord

REFRESH = 0.5  # seconds between two looks at the jobs
STATUSES = ("running", "failed", "interrupted", "finished", "pruned", "diverged", "waiting")  # in the live table
NUMBERS = ("job", "trial", "epoch", "best loss", "left")


class Display:
    """Shows the `records` of jobs, in a thread until it is closed: in a terminal as a table, elsewhere line by line.

    `names` are the settings that are shown, and `noun` is what a job is called.
    """

    def __init__(self, records: Callable[[], list[JobRecord]], names: Sequence[str], noun: str = "job") -> None:
        self.records, self.names, self.noun = records, names, noun
        # The file is that of now: the jobs' own output goes elsewhere.
        self.console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
        self._said: dict[int, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> list[JobRecord]:
        """Stop. Returns the last records."""
        self._end.set()
        self._thread.join()
        records = self.records()
        if not self.console.is_terminal:
            self._say(records)
        return records

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._end.wait(REFRESH):
                self._say(self.records())
            return
        console = self.console
        with Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as live:
            while not self._end.wait(REFRESH):
                live.update(live_table(self.records(), console.height - 3, self.names, self.noun), refresh=True)

    def _say(self, records: list[JobRecord]) -> None:
        """One line for every job that began or ended."""
        for record in records:
            if record.status == self._said.get(record.number, "waiting"):
                continue
            self._said[record.number] = record.status
            line = f"{self.noun} {record.number} {record.status}"
            if record.status in ("finished", "pruned") and record.nats is not None:
                line += f", {record.nats:.4f} nats/char, {counted(record.epoch, 'epoch')}, {duration(record.seconds)}"
            if record.error:
                line += f": {record.error}"
            shown = results.described(record.overrides, self.names)
            self.console.print(f"{line}   {shown}".rstrip(), markup=False, soft_wrap=True)


def live_table(records: list[JobRecord], height: int, names: Sequence[str], noun: str) -> Group:
    """The jobs that run, then those that ended, as many as fit, and how many there are of each kind."""
    shown = sorted((record for record in records if record.status != "waiting"), key=_place)[: max(height - 2, 1)]
    made = Table(box=None, pad_edge=False, header_style="bold cyan")
    for name in (noun, *last_parts(names), "epoch", "best loss", "left"):
        number = name in NUMBERS
        made.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for record in shown:
        settings = results.settings_of(record.overrides)
        left = record.status if record.status != "running" else "" if record.left is None else duration(record.left)
        made.add_row(
            str(record.number),
            *(settings.get(name, "") for name in names),
            f"{record.epoch}/{record.epochs or '?'}",
            "" if record.nats is None else f"{record.nats:.4f}",
            left,
        )
    counts = {status: sum(record.status == status for record in records) for status in STATUSES}
    line = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return Group(made, Text(line, style="dim"))


def _place(record: JobRecord) -> tuple[int, int]:
    """Its place in the live table: those that ended last come first among the ended ones."""
    ended = record.status in ("finished", "pruned")
    return STATUSES.index(record.status), -record.number if ended else record.number


def last_parts(names: Sequence[str]) -> list[str]:
    """``optimizer.lr`` → ``lr``, unless another name ends in the same way."""
    parts = [name.rpartition(".")[2] for name in names]
    return [part if parts.count(part) == 1 else name for part, name in zip(parts, names, strict=True)]
