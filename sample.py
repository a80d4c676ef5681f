"""Write text with a trained model: python sample.py --prompt 'for those'."""

import argparse
import io
import itertools
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from charlm.cli import Parser, add_options, exit_cleanly, options_of, quick_imports
from charlm.errors import UsageError
from charlm.inference.sampling_options import SamplingOptions
from charlm.text.characters import visible

if TYPE_CHECKING:  # PyTorch is slow to import
    from charlm.inference.language_model import Prediction


def parser() -> argparse.ArgumentParser:
    """The command line: what to read, and the fields of `SamplingOptions`."""
    p = Parser(description="Write text with a trained model. The text goes to stdout, everything else to stderr.")
    files = "A checkpoint or run folder (default: the newest run); of several, the mean of their predictions."
    p.add_argument("--checkpoint", metavar="FILE", nargs="+", action="extend", help=files)
    p.add_argument("--prompt", default="", help="The text to continue.")
    p.add_argument("--positions", metavar="TEXT", help="Show the most likely next character after each one of TEXT.")
    add_options(p, SamplingOptions)
    return p


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """The options on the command line, with a seed."""
    options = options_of(args, SamplingOptions)
    return options if options.seed is not None else options.model_copy(update={"seed": secrets.randbelow(2**32)})


def main() -> None:
    """Stream the prompt and its continuation to stdout."""
    args = parser().parse_args()
    options = sampling_options(args)
    if args.positions is not None and (args.prompt or not args.positions):
        raise UsageError("--positions needs a text to read, such as --positions ' part of', and no --prompt")
    with quick_imports():  # after --help: PyTorch takes a second to import
        from charlm.checkpoint.paths import find_checkpoint
        from charlm.inference import combining, language_model

    paths = [find_checkpoint(where) for where in args.checkpoint or [None]]
    model = language_model.load(paths[0]) if len(paths) == 1 else combining.load_ensemble(paths)
    path = " + ".join(map(str, paths))
    if args.positions is not None:
        print(path, file=sys.stderr)
        with own_options():
            predictions = model.predictions(args.positions, options.unknown)
        if not predictions:
            raise UsageError("--positions: the model never saw any character of this text; give another")
        write([table(predictions)])
        return
    print(path if options.greedy or options.temperature == 0 else f"{path} · seed {options.seed}", file=sys.stderr)
    with own_options():
        continuation = model.stream(args.prompt, **options.model_dump())
    write(itertools.chain([args.prompt], continuation))


@contextmanager
def own_options() -> Iterator[None]:
    """Name the options of the command line in a message for Python."""
    try:
        yield
    except UsageError as error:
        raise UsageError(str(error).replace('unknown="skip"', "--unknown skip")) from None


def write(pieces: Iterable[str]) -> None:
    """Write each piece to stdout immediately."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as in: sample.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(predictions: list["Prediction"]) -> str:
    """Two aligned lines: the characters read, and below them the predictions with their probabilities."""
    from rich.cells import cell_len  # some characters are two columns wide

    columns = [(visible(p.read), f"{visible(p.next)} {p.probability:.2f}") for p in predictions]
    width = max(cell_len(cell) for column in columns for cell in column) + 2
    size = max(1, (shutil.get_terminal_size().columns - len("next  ") + 2) // width)
    lines = []
    for start in range(0, len(columns), size):  # a long text needs several pairs of lines
        for name, cells in zip(("read", "next"), zip(*columns[start : start + size], strict=True), strict=True):
            padded = "".join(cell + " " * (width - cell_len(cell)) for cell in cells)
            lines.append(f"{name}  {padded}".rstrip() + "\n")
        lines.append("\n")
    return "".join(lines[:-1])


if __name__ == "__main__":
    with exit_cleanly():
        main()
