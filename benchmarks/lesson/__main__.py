"""Train every row of the lesson's ladder and compare it with the lesson: python -m benchmarks.lesson.

A row is not trained again if its folder holds a finished run of the same command. The table is rewritten after every
row.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.lesson.lesson import LADDER, Entry
from benchmarks.lesson.measure import measure, oracle
from benchmarks.lesson.runs import ROOT, find_run, train
from benchmarks.lesson.table import render
from charlm.cli import exit_cleanly
from charlm.errors import UsageError
from charlm.training.interrupt import handled_by

ORACLE_ROW = "21"


def parser() -> argparse.ArgumentParser:
    """The command-line options."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.lesson",
        description="Train every system of the lesson and compare it with the lesson.",
    )
    p.add_argument("--rows", help="train only these rows, such as 12,14 (default: all)")
    p.add_argument("--long", action="store_true", help="include the 63 epochs of row 16, which take hours on a CPU")
    p.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="where the runs go (default: %(default)s)")
    p.add_argument(
        "--output", type=Path, help="where the table goes (default: docs/ladder.md, or FOLDER/ladder.md with overrides)"
    )
    p.add_argument("overrides", nargs="*", help="Hydra overrides for every row, such as trainer.max_epochs=1")
    return p


def main() -> None:
    """Train the rows that have no finished run, and write the table."""
    args = parser().parse_args()
    asked = numbers(args.rows)
    entries = chosen(asked, args.long)
    if not (ROOT / "train.py").is_file():
        raise UsageError(
            f"there is no train.py in {ROOT}: run the ladder from a clone that is installed with pip install -e ."
        )
    output = args.output or (args.folder / "ladder.md" if args.overrides else ROOT / "docs/ladder.md")
    for override in args.overrides:
        if override.lstrip("+~").startswith(("experiment=", "hydra.", "logger=")):
            raise UsageError(f"{override}: the ladder sets experiment, logger and hydra itself")
    if output.suffix != ".md" or output.is_dir():
        raise UsageError(f"--output {output} must be a Markdown file, such as table.md")
    for folder in (args.folder, output.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made: {error.strerror}; choose another place") from None
    record = output.with_suffix(".json")
    results = recorded(record)
    lock = FileLock(args.folder / ".ladder.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(f"another ladder is running in {args.folder}: wait for it, or choose --folder") from None
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console()
    )
    with handled_by(signal.default_int_handler), bar:  # SIGTERM ends the row that is running, as Ctrl-C does
        rows = bar.add_task("rows", total=len(entries) + (ORACLE_ROW in asked))
        for entry in entries:
            found = find_run(entry, args.folder, args.overrides)
            run = found or train(entry, args.folder, args.overrides, bar)
            results[entry.row] = measure(entry, run, args.overrides)
            how = f" (found in {found})" if found else ""
            bar.console.print(f"row {entry.row}: {entry.system}{how}", markup=False, highlight=False)
            bar.advance(rows)
            write(output, record, results)
        if ORACLE_ROW in asked:
            results[ORACLE_ROW] = oracle()
            bar.console.print(f"row {ORACLE_ROW}: gradients derived by hand", highlight=False)
            bar.advance(rows)
            write(output, record, results)
    print(f"the table was written to {output}")


def numbers(rows: str | None) -> set[str]:
    """The row numbers in a list such as "12,14"; None means all. Raises UsageError for a row that does not exist."""
    known = {entry.row.split(",")[0] for entry in LADDER} | {ORACLE_ROW}
    asked = known if rows is None else {row.strip() for row in rows.split(",")}
    for row in sorted(asked - known):
        raise UsageError(f"--rows {rows}: there is no row {row!r}; rows go from 1 to 21")
    return asked


def chosen(asked: set[str], long: bool) -> list[Entry]:
    """The entries of the rows in `asked`. The long run comes first, because the shorter row 16 is read from it."""
    wanted = [entry for entry in LADDER if entry.row.split(",")[0] in asked and (long or not entry.long)]
    return sorted(wanted, key=lambda entry: not entry.long)


def recorded(record: Path) -> dict[str, Any]:
    """The results recorded so far, by row."""
    if not record.is_file():
        return {}
    known = {entry.row for entry in LADDER} | {ORACLE_ROW}
    try:
        results = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        results = None
    rows = results.items() if isinstance(results, dict) else [("", None)]
    if not all(row in known and isinstance(result, dict) and "command" in result for row, result in rows):
        raise UsageError(f"{record} is damaged or not a ladder's: move it away, or choose another --output")
    return results


def write(output: Path, record: Path, results: dict[str, Any]) -> None:
    """Write the table and the results it is made from. An interrupt leaves the old files intact."""
    for path, text in ((record, json.dumps(results, indent=1, ensure_ascii=False) + "\n"), (output, render(results))):
        half = path.with_name(f".{path.name}.tmp")
        half.write_text(text, encoding="utf-8")
        half.replace(path)


if __name__ == "__main__":
    with exit_cleanly():
        main()
