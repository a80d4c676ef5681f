"""What goes to the terminal: times, counts, tables and commands. Imports nothing heavy."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``7.51`` → ``7.5 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def total_time(seconds: float) -> str:
    """``12.34`` → ``12.3 seconds``, ``123.4`` → ``2.1 minutes``."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def counted(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``, ``2 processes``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def print_facts(console: Console, rows: dict[str, str]) -> None:
    """Print names and values in two columns, without blanks at the ends of lines."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        for number, line in enumerate(Text(value).wrap(console, max(console.width - width, 20), overflow="fold")):
            line.rstrip()
            start = Text((name if number == 0 else "").ljust(width), style="bold cyan")
            console.print(start + line, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table, in a file without blanks at the ends of lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def print_command(console: Console, title: str, command: str) -> None:
    """Print a command on its own line and never wrapped, so that it can be copied."""
    console.print(f"[bold cyan]{escape(title)}[/]", highlight=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def preview(text: str, width: int) -> str:
    """The beginning of `text` on one line of `width` terminal columns; a Chinese character takes two of them."""
    line = "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))
    return set_cell_size(line, min(cell_len(line), width)).rstrip()
