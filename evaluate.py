"""Evaluate trained models: python evaluate.py RUN."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.cli import Parser, add_options, exit_cleanly, options_of, quick_imports
from charlm.errors import UsageError
from charlm.inference.evaluation_options import EvaluationOptions

if TYPE_CHECKING:  # PyTorch is slow to import
    from charlm.inference.observer import Observer


def parser() -> argparse.ArgumentParser:
    """The command line: what to evaluate, the fields of `EvaluationOptions`, and what to write."""
    p = Parser(
        description="How well models predict a text: exact losses with their protocol, as a table or as JSON. With "
        "several models, one table, the best first, and the means over seeds."
    )
    files = "Checkpoints or run folders (default: the newest run)."
    p.add_argument("models", metavar="RUN", nargs="*", help=files)
    p.add_argument("--checkpoint", metavar="RUN", nargs="+", action="extend", default=[], help="The same.")
    together = "One more model: the mean of the predictions of these."
    p.add_argument("--ensemble", metavar="RUN", nargs="+", default=[], help=together)
    p.add_argument("--average", metavar="RUN", nargs="+", default=[], help="One more model: the mean of their weights.")
    add_options(p, EvaluationOptions)
    p.add_argument(
        "--json", metavar="FILE", help="Write all figures as JSON to FILE, or to stdout (-) instead of a table."
    )
    p.add_argument(
        "--per-character", metavar="FILE", help="Write a row for every character to FILE.csv or FILE.parquet."
    )
    return p


def main() -> None:
    """Evaluate what the command line names, and print and write the figures."""
    args = parser().parse_args()
    options = options_of(args, EvaluationOptions)
    with quick_imports():  # after --help: PyTorch takes a second to import
        from rich.console import Console

        from charlm.inference.per_character import check_format, write_per_character
        from charlm.inference.report import models_table, print_evaluation, seeds_table
        from charlm.output import print_table
        from charlm.run.evaluate import evaluate_all, find_models, over_seeds

    models = find_models([*args.models, *args.checkpoint], args.ensemble, args.average)
    if args.per_character:
        if len(models) > 1:
            raise UsageError("--per-character is for one model, not several")
        check_format(args.per_character)
    with observed() as observer:
        found = evaluate_all(models, options, observer)
    seeds = over_seeds(found)
    if args.per_character:
        write_per_character(found[0].evaluation.losses, Path(args.per_character))
    if args.json:
        everything = (
            found[0].as_dict() if len(models) == 1 else {"models": [e.as_dict() for e in found], "seeds": seeds}
        )
        write(args.json, json.dumps(everything, indent=2, ensure_ascii=False) + "\n")
        if args.json == "-":
            return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if len(models) == 1:
        one = found[0]
        print_evaluation(console, one.name, one.text, one.methods, one.evaluation)
        return
    print_table(console, models_table([(e.name, e.evaluation, e.seconds) for e in found]))
    if seeds:
        console.print()
        print_table(console, seeds_table(seeds))


def write(path: str, text: str) -> None:
    """Write `text` to a file, or to stdout if its name is ``-``."""
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


@contextmanager
def observed() -> Iterator["Observer"]:
    """A progress bar on stderr, if that is a terminal, and warnings as lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from charlm.inference.observer import Observer

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield Observer(
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            notify=lambda line: bar.update(task, description=line),
            warn=lambda line: bar.console.print(f"warning: {line}", markup=False, soft_wrap=True),
        )


if __name__ == "__main__":
    with exit_cleanly():
        main()
