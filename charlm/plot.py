"""Draw the losses of several runs in one picture: python -m charlm.plot runs/*"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from charlm.checkpoint.storage import replace_file
from charlm.cli import Parser, exit_cleanly
from charlm.curves import comparison, points, read_rows
from charlm.errors import UsageError

FORMATS = ("png", "svg", "pdf")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m charlm.plot",
        description="Draw the losses of several runs in one picture. (Each run keeps a loss.png of its own.)",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="A run folder, or its metrics.csv.")
    p.add_argument("--output", default="losses.png", metavar="FILE", help="A .png, .svg or .pdf. Default: losses.png.")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, draw them and say where the picture is. Raises UsageError if there is nothing to draw."""
    args = parser().parse_args(arguments)
    output = Path(args.output)
    if output.suffix[1:].lower() not in FORMATS:
        raise UsageError(f"--output={output} must end in .png, .svg or .pdf")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output={output}: there is no folder {output.parent}, create it first")
    tables, without = {}, []
    for given in map(Path, args.runs):
        path = given / "metrics.csv" if given.is_dir() else given
        if not given.exists():
            raise UsageError(f"there is no {given}: give run folders, such as runs/*")
        rows = read_rows(path) if path.exists() else []
        if points(rows, "train_nats")[0]:
            tables[path.absolute().parent] = rows
        else:
            without.append(str(given))
    if not tables:
        raise UsageError(f"nothing to draw: no epoch has ended in {', '.join(without[:5])}")
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        print(f"left out, as no epoch has ended there: {', '.join(without[:5])}{more}", file=sys.stderr)
    names = [folder.name for folder in tables]
    if len(set(names)) < len(names):  # as in sweeps/*/0_gru_nietzsche
        names = ["/".join(folder.parts[-2:]) for folder in tables]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in tables]
    settings = dict(zip(names, differing(list(tables)), strict=True))
    runs = dict(zip(names, tables.values(), strict=True))
    replace_file(output, comparison(runs, settings, output.suffix[1:].lower()))
    print(f"{output}: {len(tables)} {'run' if len(tables) == 1 else 'runs'}")


def differing(folders: Sequence[Path]) -> list[str]:
    """What was set on the command line of each run and not of all, as in ``schedule=linear optimizer.lr=1e-3``."""
    given = []
    for folder in folders:
        try:
            overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra/overrides.yaml"))
        except Exception:  # missing or damaged: the curve is drawn all the same
            overrides = None
        given.append([str(override) for override in overrides] if isinstance(overrides, list) else [])
    common = set(given[0]).intersection(*given)
    return [" ".join(override for override in overrides if override not in common) for overrides in given]


if __name__ == "__main__":
    with exit_cleanly():
        main()
