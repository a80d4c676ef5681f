"""The tables of a sweep or a search for the terminal. Values are plain text: brackets in them are no markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from charlm.output import duration
from charlm.sweeps.folder import JobRecord
from charlm.sweeps.results import settings_of

# Which come first in the live table; of equal ones, the latest.
ORDER = {"running": 0, "failed": 1, "diverged": 1, "interrupted": 2, "finished": 3, "pruned": 3, "waiting": 4}
WHOLE = ("status", "seconds")  # the columns of a final table that are not folded


def plain_table() -> Table:
    """A table without lines."""
    return Table(box=None, pad_edge=False, header_style="bold cyan")


def live_table(records: Sequence[JobRecord], names: Sequence[str], height: int, noun: str) -> Group:
    """The jobs that run, then those that ended, as many as fit, and how many there are of each kind."""
    begun = [record for record in records if record.status != "waiting"]
    latest = sorted(begun, key=lambda record: record.number, reverse=True)
    shown = sorted(latest, key=lambda record: ORDER[record.status])[: max(height - 2, 1)]
    made = plain_table()
    shown_names = short(names)
    for name in (noun, *shown_names, "epoch", "best loss", "left"):
        made.add_column(Text(name), justify="left" if name in shown_names else "right", no_wrap=True)
    for record in shown:
        settings = settings_of(record.overrides)
        left = record.status if record.status != "running" else "" if record.left is None else duration(record.left)
        cells = [
            str(record.number),
            *(settings.get(name, "") for name in names),
            f"{record.epoch}/{record.epochs or '?'}",
            "" if record.nats is None else f"{record.nats:.4f}",
            left,
        ]
        made.add_row(*map(Text, cells))
    counts = {status: sum(record.status == status for record in records) for status in ORDER}
    line = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return Group(made, Text(line, style="dim"))


def short(names: Sequence[str]) -> list[str]:
    """``optimizer.lr`` → ``lr``, unless another name ends in the same way."""
    parts = [name.rpartition(".")[2] for name in names]
    return [part if parts.count(part) == 1 else name for part, name in zip(parts, names, strict=True)]


def final_table(table: Sequence[Mapping[str, Any]], loss: str, width: int) -> Table:
    """The rows for the terminal, without columns that say nothing; with short names if `width` is not enough."""
    names = [name for name in (table[0] if table else {}) if name not in ("error", "folder")]
    if {row["status"] for row in table} == {"finished"}:
        names.remove("status")
    if len({row["model"] for row in table}) == 1:
        names.remove("model")
    cells = [[_cell(name, row[name], loss) for name in names] for row in table]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    made, titles = plain_table(), names
    if sum(widths) + 2 * len(widths) > width + 2:
        titles = short(["best loss" if name == loss else name for name in names])
        made.collapse_padding = True
    for name, title in zip(names, titles, strict=True):
        right = name in ("job", "trial", loss, "epochs", "seconds")
        shown = Text("time" if name == "seconds" else title)
        made.add_column(shown, justify="right" if right else "left", overflow="fold", no_wrap=name in WHOLE)
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def seeds_table(seeds: Sequence[Mapping[str, Any]]) -> Table:
    """The means over seeds for the terminal."""
    made = plain_table()
    for name in seeds[0]:
        made.add_column(Text(name), justify="right" if name in ("seeds", "mean", "standard deviation") else "left")
    for group in seeds:
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value or "") for value in group.values())
        made.add_row(*map(Text, cells))
    return made


def _cell(name: str, value: Any, loss: str) -> str:
    if value is None:
        return ""
    if name == loss:
        return f"{value:.4f}" if value > 0.01 else f"{value:.3g}"
    return duration(value) if name == "seconds" else str(value)
