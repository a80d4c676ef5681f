"""Run the lesson's ladder and compare it with the lesson: python -m benchmarks.lesson

A row whose folder holds a finished run of the same command is not run again. The table is written anew
after every row.
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

ORACLE_ROW = "21"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.lesson",
        description="Train every system of the lesson and compare it with the lesson.",
    )
    p.add_argument("--rows", help="only these, for example 12,14 (default: all)")
    p.add_argument("--long", action="store_true", help="with the 63 epochs of row 16, which take hours on a CPU")
    p.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="where the runs go (default: %(default)s)")
    p.add_argument(
        "--output", type=Path, help="the table (default: docs/ladder.md, or FOLDER/ladder.md when there are overrides)"
    )
    p.add_argument("overrides", nargs="*", help="Hydra overrides for every row, for example trainer.max_epochs=1")
    return p


def main() -> None:
    """Run what is missing, write the table."""
    args = parser().parse_args()
    asked = numbers(args.rows)
    entries = chosen(asked, args.long)
    if not (ROOT / "train.py").is_file():
        raise UsageError(
            f"there is no train.py in {ROOT}: run the ladder from a clone, installed with pip install -e ."
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as after Ctrl-C: with the row that is running
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console()
    )
    with bar:
        rows = bar.add_task("rows", total=len(entries) + (ORACLE_ROW in asked))
        for entry in entries:
            found = find_run(entry, args.folder, args.overrides)
            run = found or train(entry, args.folder, args.overrides, bar)
            results[entry.row] = measure(entry, run, args.overrides)
            how = f" (as found in {found})" if found else ""
            bar.console.print(f"row {entry.row}: {entry.system}{how}", markup=False, highlight=False)
            bar.advance(rows)
            write(output, record, results)
        if ORACLE_ROW in asked:
            results[ORACLE_ROW] = oracle()
            bar.console.print(f"row {ORACLE_ROW}: gradients derived by hand", highlight=False)
            bar.advance(rows)
            write(output, record, results)
    print(f"the table is in {output}")


def numbers(rows: str | None) -> set[str]:
    """The row numbers in "12,14"; all without it. Raises UsageError for rows that are not there."""
    known = {entry.row.split(",")[0] for entry in LADDER} | {ORACLE_ROW}
    asked = known if rows is None else {row.strip() for row in rows.split(",")}
    for row in sorted(asked - known):
        raise UsageError(f"--rows {rows}: there is no row {row!r}; rows go from 1 to 21")
    return asked


def chosen(asked: set[str], long: bool) -> list[Entry]:
    """The entries of the rows `asked`; the long run, which holds a shorter one, goes first."""
    wanted = [entry for entry in LADDER if entry.row.split(",")[0] in asked and (long or not entry.long)]
    return sorted(wanted, key=lambda entry: not entry.long)


def recorded(record: Path) -> dict[str, Any]:
    """The results so far."""
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
    """The table, and the figures it is made of; an interrupt leaves the old ones whole."""
    for path, text in ((record, json.dumps(results, indent=1, ensure_ascii=False) + "\n"), (output, render(results))):
        half = path.with_name(f".{path.name}.tmp")
        half.write_text(text, encoding="utf-8")
        half.replace(path)


if __name__ == "__main__":
    with exit_cleanly():
        main()
