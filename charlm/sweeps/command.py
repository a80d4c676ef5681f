"""``python train.py -m resume=SWEEP``, and the same command again: which sweep it resumes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from charlm.checkpoint.paths import quoted
from charlm.errors import UsageError
from charlm.run.suggest import option_of
from charlm.sweeps.folder import SweepFolder, open_sweep

TAKE_A_VALUE = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments of a multirun with the folder and the command of the sweep that is resumed; others as they are.

    Raises UsageError for a folder that is no sweep, and for a change of what its jobs are.
    """
    flags, hydra, task = split(arguments)
    if "-m" not in flags:
        return list(arguments)
    asked = [argument for argument in task if option_of(argument) == "resume"]
    folders = [argument for argument in hydra if option_of(argument) == "hydra.sweep.dir"]
    if asked:
        path = Path(str(OverridesParser.create().parse_override(asked[-1]).value()))
        if (path / "checkpoints").is_dir():
            raise UsageError(f"resume={path} is one run, not a sweep: leave out -m")
        command = open_sweep(path)
        if others := [argument for argument in task if argument not in asked and argument not in command["overrides"]]:
            raise UsageError(f"{others[0]} cannot change in a resumed sweep: leave it out, or start a new sweep")
        if folders:
            raise UsageError(f"{folders[0]}: a resumed sweep stays in its own folder, leave it out")
        replaced = {option_of(argument) for argument in hydra}
        earlier = [o for o in command["hydra"] if option_of(o) not in replaced | {"hydra.sweep.dir", "hydra.mode"}]
        if "hydra/launcher" in replaced:  # its options are others
            earlier = [override for override in earlier if not option_of(override).startswith("hydra.launcher.")]
        saved = command["flags"] if flags == ["-m"] else []
        own = f"hydra.sweep.dir={quoted(str(path))}"
        return ["-m", *flags[1:], *saved, *command["overrides"], *earlier, *hydra, own]
    if folders:
        return list(arguments)
    for sweep in sorted(Path("sweeps").glob("*/.jobs/sweep.json"), reverse=True):
        path = sweep.parents[1]
        found = SweepFolder(path).command()
        if found is None or found["ended"] or (found["overrides"], found["flags"]) != (task, flags[1:]):
            continue
        if not SweepFolder(path).locked():
            note = f"resuming {path}, which is not finished (hydra.sweep.dir=FOLDER starts anew)"
            print(note, file=sys.stderr, flush=True)  # before the live table is drawn
            return [*arguments, f"hydra.sweep.dir={quoted(str(path))}"]
    return list(arguments)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The flags with their values (``-m`` first), the overrides of Hydra itself, and those of the program."""
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        a_value = bool(flags) and flags[-1] in TAKE_A_VALUE
        (flags if a_value or argument.startswith("-") else overrides).append(argument)
    if "-m" in flags:
        flags.remove("-m")
        flags.insert(0, "-m")
    hydra = [override for override in overrides if option_of(override).startswith(("hydra.", "hydra/"))]
    return flags, hydra, [override for override in overrides if override not in hydra]
