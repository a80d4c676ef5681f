"""Write text with a trained model: python sample.py --prompt 'for those'."""

import argparse
import io
import itertools
import os
import random
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from charlm.checks import check_int, check_number
from charlm.cli import exit_cleanly
from charlm.errors import UsageError

if TYPE_CHECKING:  # PyTorch is slow to import
    from charlm.inference.language_model import Prediction


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description="Write text with a trained model. The text goes to stdout, everything else to stderr."
    )
    p.add_argument("--checkpoint", metavar="FILE", help="a checkpoint or run folder (default: the newest run)")
    p.add_argument("--prompt", default="", help="the text to continue")
    p.add_argument("--positions", metavar="TEXT", help="show the likeliest next character after each one of TEXT")
    p.add_argument("--length", type=int, default=500, help="characters to write (default: %(default)s)")
    p.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="below 1 is safer, above 1 wilder (default: %(default)s)",
    )
    p.add_argument("--greedy", action="store_true", help="always the most likely character")
    p.add_argument("--seed", type=int, help="write the same text again (default: a new one, shown on stderr)")
    p.add_argument(
        "--unknown",
        choices=["error", "skip"],
        default="error",
        help="what to do with prompt characters the model never saw (default: %(default)s)",
    )
    return p


def main() -> None:
    """Stream the prompt and its continuation to stdout."""
    args = parser().parse_args()
    check_int("--length", args.length, 0)
    check_number("--temperature", args.temperature)
    if args.positions is not None and (args.prompt or not args.positions):
        raise UsageError("--positions needs a text to read, such as --positions ' part of', and no --prompt")
    from charlm.checkpoint.paths import find_checkpoint
    from charlm.inference import language_model  # after --help: PyTorch takes a second to import

    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    path = find_checkpoint(args.checkpoint)
    model = language_model.load(path)
    if args.positions is not None:
        print(path, file=sys.stderr)
        predictions = model.predictions(args.positions, args.unknown)
        if not predictions:
            raise UsageError("--positions: the model never saw any character of this text; give another")
        write([table(predictions)])
        return
    print(path if args.greedy else f"{path} · seed {seed}", file=sys.stderr)
    characters = model.stream(
        args.prompt,
        args.length,
        temperature=args.temperature,
        greedy=args.greedy,
        seed=seed,
        unknown=args.unknown,
    )
    write(itertools.chain([args.prompt], characters))


def write(pieces: Iterable[str]) -> None:
    """Write to stdout, each piece at once."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in: sample.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(predictions: list["Prediction"]) -> str:
    """Two aligned lines: what was read, and under it what is predicted next with its probability."""
    from rich.cells import cell_len  # some characters are two columns wide

    columns = [(visible(p.read), f"{visible(p.next)} {p.probability:.2f}") for p in predictions]
    width = max(cell_len(cell) for column in columns for cell in column) + 2
    size = max(1, (shutil.get_terminal_size().columns - len("next  ") + 2) // width)
    lines = []
    for start in range(0, len(columns), size):  # a long text takes several pairs of lines
        for name, cells in zip(("read", "next"), zip(*columns[start : start + size], strict=True), strict=True):
            padded = "".join(cell + " " * (width - cell_len(cell)) for cell in cells)
            lines.append(f"{name}  {padded}".rstrip() + "\n")
        lines.append("\n")
    return "".join(lines[:-1])


def visible(character: str) -> str:
    """A character as one symbol that can be seen."""
    symbols = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
    return symbols.get(character, character if character.isprintable() else "·")


if __name__ == "__main__":
    with exit_cleanly():
        main()
