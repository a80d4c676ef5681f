"""``python train.py task=profile``: where the time of training goes, as a table and a trace file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from charlm.errors import UsageError
from charlm.output import print_facts
from charlm.run.briefly import train_briefly
from charlm.run.compose import Job
from charlm.run.experiment import new_console
from charlm.run.settings import Settings
from charlm.run.threads import own_threads
from charlm.training.profile import WARM_UP, Phases, Profile, Row

SHOWN = 15  # rows of the table


@dataclass(frozen=True)
class ProfileResult:
    """The outcome: operations by their own time, training speed without the profiler, and the folder of the trace."""

    rows: list[Row] = field(repr=False)
    characters_per_second: float
    folder: Path


@own_threads()
def profile(settings: Settings, job: Job) -> ProfileResult:
    """Record some training steps of a new model with PyTorch's profiler.

    Raises UsageError like `charlm.run.experiment.run`.
    """
    console, steps = new_console(), settings.profile.steps
    recorders: list[Profile] = []

    def observer(advance: Callable[[], None]) -> Profile:
        recorders.append(Profile(steps, advance))
        return recorders[0]

    folder, _ = train_briefly(console, settings, job, observer, batches=WARM_UP + 2 * steps, profiler=Phases())
    recorder, trace = recorders[0], folder / "trace.json"
    if not recorder.rows:
        raise UsageError("trainer: these limits leave no batch to train on")
    recorder.export(trace)
    speed = recorder.characters / recorder.plain_seconds
    console.print(rows_table(recorder.rows, steps))
    notes = {
        "speed": f"{speed:,.0f} characters/s, {recorder.plain_seconds / steps * 1e3:.2f} ms per batch",
        "while recorded": f"{recorder.seconds / steps * 1e3:.2f} ms per batch",
        "trace": str(trace),
        "open it at": "https://ui.perfetto.dev or chrome://tracing",
    }
    console.print()
    print_facts(console, notes)
    return ProfileResult(recorder.rows, speed, folder)


def rows_table(rows: list[Row], steps: int) -> Table:
    """The operations that take longest, with their share of the time of all."""
    total = sum(row.seconds for row in rows) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    table.add_column("own time of", no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("share", "ms per batch", "calls per batch"):
        table.add_column(name, justify="right")
    for row in rows[:SHOWN]:
        share, milliseconds = row.seconds / total, row.seconds / steps * 1e3
        table.add_row(row.name, f"{share:.1%}", f"{milliseconds:.3f}", f"{row.calls / steps:g}")
    return table
