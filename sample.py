"""Write text with a trained model: python sample.py --prompt 'for those'."""

import argparse
import io
import os
import random
import sys

from charlm.cli import exit_cleanly
from charlm.options import number, whole


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description="Write text with a trained model. The text goes to stdout, everything else to stderr."
    )
    p.add_argument("--checkpoint", metavar="FILE", help="a checkpoint or run folder (default: the newest run)")
    p.add_argument("--prompt", default="", help="the text to continue")
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
    whole("--length", args.length, 0)
    number("--temperature", args.temperature)
    from charlm import checkpoint, language_model  # after --help: PyTorch is slow to import

    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    path = checkpoint.find(args.checkpoint)
    model = language_model.load(path)
    print(f"{path} · seed {seed}", file=sys.stderr)
    characters = model.stream(
        args.prompt,
        args.length,
        temperature=args.temperature,
        greedy=args.greedy,
        seed=seed,
        unknown=args.unknown,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
    try:
        sys.stdout.write(args.prompt)
        for character in characters:
            sys.stdout.write(character)
            sys.stdout.flush()
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in: sample.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    with exit_cleanly():
        main()
