"""``python train.py -m resume=SWEEP``, and the same command again: which sweep it goes on with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from charlm.checkpoint.paths import quoted
from charlm.errors import UsageError
from charlm.sweeps.folder import SweepFolder, open_sweep

SET_AGAIN = ("hydra.sweep.dir=", "hydra.mode=")


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments of a multirun with the folder and the command of the sweep that is resumed; others as they are.

    Raises UsageError for a folder that is no sweep, and for a change of what its jobs are.
    """
    if "-m" not in arguments:
        return list(arguments)
    typed = [argument for argument in arguments if argument != "-m"]
    hydra = [argument for argument in typed if argument.lstrip("+~").startswith("hydra")]
    task = [argument for argument in typed if argument not in hydra]
    asked = [argument for argument in task if argument.startswith("resume=")]
    if asked:
        path = Path(asked[-1].removeprefix("resume=").strip("'\""))
        if (path / "checkpoints").is_dir():
            raise UsageError(f"resume={path} is one run, not a sweep: leave out -m")
        _, command = open_sweep(path)
        if others := [argument for argument in task if argument not in asked and argument not in command["overrides"]]:
            raise UsageError(f"{others[0]} cannot change in a resumed sweep: leave it out, or start a new sweep")
        earlier = [override for override in command["hydra"] if not override.startswith(SET_AGAIN)]
        return ["-m", *command["overrides"], *earlier, *hydra, f"hydra.sweep.dir={quoted(str(path))}"]
    if any(argument.startswith("hydra.sweep.dir=") for argument in hydra):
        return list(arguments)
    for sweep in sorted(Path("sweeps").glob("*/.jobs/sweep.json"), reverse=True):
        path = sweep.parents[1]
        found = SweepFolder(path).command()
        if found and found["overrides"] == task and not found.get("ended") and not locked(path):
            print(f"going on with {path}, which is not finished (hydra.sweep.dir=FOLDER starts anew)", file=sys.stderr)
            return [*arguments, f"hydra.sweep.dir={quoted(str(path))}"]
    return list(arguments)


def locked(path: Path) -> bool:
    """Whether another process runs the sweep in `path`."""
    try:
        with FileLock(path / ".jobs/lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True
