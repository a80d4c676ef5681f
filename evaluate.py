"""Evaluate trained models: python evaluate.py RUN."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm.cli import Parser, add_options, exit_cleanly, forgiving_output, number, options_of, quick_imports
from charlm.errors import UsageError
from charlm.inference.evaluation_options import EvaluationOptions

if TYPE_CHECKING:  # PyTorch is slow to import
    from rich.console import Console

    from charlm.inference.observer import Observer
    from charlm.run.evaluate import Entry, Evaluated


def parser() -> argparse.ArgumentParser:
    """The command line: what to evaluate, the fields of `EvaluationOptions`, and what else to do."""
    p = Parser(
        description="How well models predict a text: exact losses with their protocol, as a table or as JSON. With "
        "several models, one table, the best first, and the means over seeds."
    )
    p.add_argument("models", metavar="RUN", nargs="*", help="Checkpoints or run folders (default: the newest run).")
    p.add_argument("--checkpoint", metavar="RUN", nargs="+", action="extend", default=[], help="Further ones, as RUN.")
    together = "One more model, whose predictions are the mean of those of these."
    p.add_argument("--ensemble", metavar="RUN", nargs="+", default=[], help=together)
    p.add_argument(
        "--average", metavar="RUN", nargs="+", default=[], help="One more model, whose weights are their mean."
    )
    add_options(p, EvaluationOptions)
    also = p.add_argument_group("reports (all but --json for one model only)")
    file = "Write all figures as JSON to FILE, or to stdout (-) instead of a table."
    also.add_argument("--json", metavar="FILE", help=file)
    also.add_argument("--per-character", metavar="FILE", help="Write a row per character to FILE.csv or FILE.parquet.")
    beside = "Compare with xz, bzip2, zstd, PPMd and zpaq, primed with the training text."
    also.add_argument("--compressors", action="store_true", help=beside)
    spans = "List surprising passages of --text or --split test, with RATE false alarms per 10,000 characters (1)."
    also.add_argument("--anomalies", metavar="RATE", type=number, nargs="?", const=1.0, help=spans)
    memorised = "Find what the text in FILE, such as a sample, has verbatim from the training text."
    also.add_argument("--memorised", metavar="FILE", help=memorised)
    clm = p.add_argument_group("compression (extra [compress])")
    clm.add_argument("--compress", metavar="FILE", help="Compress FILE, of any kind, without loss, to FILE.clm.")
    clm.add_argument("--decompress", metavar="FILE.clm", help="Decompress it, with the same model on the same machine.")
    clm.add_argument("-o", "--output", metavar="FILE", help="The file to write, for --compress and --decompress.")
    streams = "Compress FILE in N parts side by side: faster, but each begins without context. Default: 1."
    clm.add_argument("--streams", metavar="N", type=number, help=streams)
    return p


def main() -> None:
    """Evaluate what the command line names, and print and write the figures."""
    args = parser().parse_args()
    options = options_of(args, EvaluationOptions)
    check(args)
    with quick_imports():  # after --help: PyTorch takes a second to import
        from charlm.run.evaluate import find_models

    models = find_models([*args.models, *args.checkpoint], args.ensemble, args.average)
    alone = ("per_character", "compressors", "anomalies", "memorised", "compress", "decompress")
    for name in alone:
        if getattr(args, name) and len(models) > 1:
            raise UsageError(f"--{name.replace('_', '-')} is for one model, not for {len(models)}")
    if args.compress or args.decompress:
        use_clm(args, options, models[0])
    else:
        evaluate(args, options, models)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other."""
    if args.compress and args.decompress:
        raise UsageError("--compress and --decompress are two commands: give one of them")
    for name in ("json", "per_character"):  # written in the end, perhaps after minutes
        path = getattr(args, name)
        if path not in (None, "-") and (not Path(path).absolute().parent.is_dir() or Path(path).is_dir()):
            raise UsageError(
                f"--{name.replace('_', '-')} {path}: cannot be written, name a file in a folder that exists"
            )
    for name in ("output", "streams"):
        if getattr(args, name) is not None and not args.compress and not (name == "output" and args.decompress):
            raise UsageError(f"--{name} is for --compress{' and --decompress' if name == 'output' else ''} only")
    if args.compress or args.decompress:
        for name in ("json", "per_character", "compressors", "anomalies", "memorised", "text"):
            if getattr(args, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} does not go with --compress and --decompress: leave it out"
                )
    if (args.compress or args.decompress) and (args.protocol != "stream" or args.split != "val"):
        raise UsageError("--compress reads a file, not a split, as --streams say: leave --split and --protocol out")
    if args.streams is not None and not (isinstance(args.streams, int) and 1 <= args.streams <= 4096):
        raise UsageError(f"--streams {args.streams} must be a whole number from 1 to 4096")
    if args.decompress and (args.dynamic or args.cache or args.temperature != 1):
        raise UsageError("--decompress takes dynamic, cache and temperature from the file: leave them out")


def use_clm(args: argparse.Namespace, options: EvaluationOptions, model: "Entry") -> None:
    """Compress or decompress a file."""
    with quick_imports():
        from charlm.output import print_facts
        from charlm.run.clm import compress_file, decompress_file, targets

    paths = targets(args.compress or args.decompress, args.output, decompress=bool(args.decompress))
    with observed() as observer:
        if args.decompress:
            outcome = decompress_file(model, paths, observer)
        else:
            outcome = compress_file(model, paths, options, 1 if args.streams is None else args.streams, observer)
    print_facts(console(), outcome.facts())


def evaluate(args: argparse.Namespace, options: EvaluationOptions, models: "list[Entry]") -> None:
    """Evaluate models, print the figures and write the files."""
    with quick_imports():
        from charlm.inference.per_character import check_format, write_per_character
        from charlm.run import reports
        from charlm.run.evaluate import evaluate_all

    # What would fail in the end fails now.
    rate = None if args.anomalies is None else float(args.anomalies)
    if args.per_character:
        check_format(args.per_character)
    if args.compressors:
        reports.check_compressors(options)
    if rate is not None:
        reports.check_surprising(options, rate)
    sample = reports.sample_for(args.memorised, options.encoding) if args.memorised else None
    train = args.compressors or sample is not None
    with observed() as observer:
        found = evaluate_all(models, options, observer, lambda text: reports.check_texts(text, rate, train=train))
        more: dict[str, Any] = {}
        if args.compressors:
            more["compressors"] = reports.beside_compressors(found[0], observer)
        if rate is not None:
            more["anomalies"] = reports.surprising(found[0], rate, observer)
        if sample is not None:
            more["memorised"] = reports.memorised(found[0], sample)
    if args.per_character:
        write_per_character(found[0].evaluation.losses, Path(args.per_character))
    if args.json:
        write(args.json, json.dumps(reports.as_dict(found, more, one=len(models) == 1), indent=2) + "\n")
    if args.json != "-":
        show(found, more, one=len(models) == 1)


def show(found: "list[Evaluated]", more: dict[str, Any], *, one: bool) -> None:
    """Print the figures of one model, or a table of several."""
    from charlm.inference.report import compressors_table, models_table, print_evaluation, print_lines, seeds_table
    from charlm.output import print_facts, print_table
    from charlm.run.evaluate import over_seeds

    terminal, first = console(), found[0]
    if one:
        print_evaluation(terminal, first.name, first.text, first.methods, first.evaluation)
    else:
        asked = first.options.model_dump(exclude_defaults=True, exclude={"protocol"})
        options = {name.replace("_", " "): str(value) for name, value in asked.items()}
        print_facts(terminal, {"protocol": first.evaluation.losses.protocol.describe(), **options})
        terminal.print()
        print_table(terminal, models_table([(each.name, each.text, each.evaluation, each.seconds) for each in found]))
        if seeds := over_seeds(found):
            terminal.print()
            print_table(terminal, seeds_table(seeds))
    if "compressors" in more:
        terminal.print()
        print_table(terminal, compressors_table(more["compressors"]))
    for name in ("anomalies", "memorised"):
        if name in more:
            print_lines(terminal, more[name].lines())


def console() -> "Console":
    """The terminal, or lines of 120 columns in a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


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
            begin=lambda line: None if console.is_terminal else console.print(line, markup=False, soft_wrap=True),
            warn=lambda line: bar.console.print(f"warning: {line}", markup=False, soft_wrap=True),
        )


if __name__ == "__main__":
    with forgiving_output(), exit_cleanly():  # as in: evaluate.py | head
        main()
