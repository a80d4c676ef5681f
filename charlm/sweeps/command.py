"""``python train.py -m resume=SWEEP``, ``resume=SEARCH``, and the same command again: what is resumed."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from charlm.checkpoint.paths import quoted
from charlm.errors import UsageError
from charlm.run.suggest import option_of, readable
from charlm.sweeps.folder import SEARCH, SWEEP, SweepFolder, open_sweep

TAKE_A_VALUE = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")
EXTENDABLE = ("search.trials", "search.minutes", "search.engine")  # what can change when a search is resumed


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments with the folder and the command of the sweep or search that is resumed; others as they are.

    Raises UsageError for a folder that is no sweep, and for a change of what its jobs or trials are.
    """
    flags, hydra, task = split(arguments)
    if "-m" not in flags:
        return expanded_search(arguments)
    path = resumed_folder(task)
    folders = [argument for argument in hydra if option_of(argument) == "hydra.sweep.dir"]
    if path is not None:
        if (path / "checkpoints").is_dir():
            raise UsageError(f"resume={path} is one run, not a sweep: leave out -m")
        command = open_sweep(path)
        given = [argument for argument in task if option_of(argument) != "resume"]
        if others := [argument for argument in given if argument not in command["overrides"]]:
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
    return [*arguments, *unfinished("sweeps", "hydra.sweep.dir", SWEEP, overrides=task, flags=flags[1:])]


def expanded_search(arguments: Sequence[str]) -> list[str]:
    """The arguments with the folder and the command of the search that is resumed; others as they are."""
    if resumed := resumed_search(arguments):
        return [*resumed[0], f"hydra.run.dir={quoted(str(resumed[1]))}"]
    flags, hydra, task = split(arguments)
    if flags or {"resume", "hydra.run.dir"} & set(map(option_of, arguments)):
        return list(arguments)
    return [*arguments, *unfinished("searches", "hydra.run.dir", SEARCH, overrides=task)]


def resumed_search(arguments: Sequence[str]) -> tuple[list[str], Path] | None:
    """The overrides and the folder of the search that ``resume=`` names; None if it names none.

    Raises UsageError for a change of what its trials are.
    """
    path = resumed_folder(arguments)
    command = None if path is None else SweepFolder(path).command(SEARCH)
    if path is None or command is None:
        return None
    limits = []
    for argument in arguments:
        if option_of(argument) in EXTENDABLE:
            limits.append(argument)
        elif option_of(argument) != "resume" and argument not in command["overrides"]:
            raise UsageError(
                f"{argument} cannot change in a resumed search, only {', '.join(EXTENDABLE)} can: leave it out, or "
                f"start a new search"
            )
    replaced = set(map(option_of, limits))
    return [*(o for o in command["overrides"] if option_of(o) not in replaced), *limits], path


def resumed_folder(overrides: Sequence[str]) -> Path | None:
    """The folder that ``resume=`` names, if it is there."""
    asked = readable([override for override in overrides if option_of(override) == "resume"])
    return Path(str(OverridesParser.create().parse_override(asked[-1]).value())) if asked else None


def unfinished(top: str, option: str, keys: Set[str], **same: list[str]) -> list[str]:
    """The override of `option` that resumes the latest unfinished sweep or search in `top` with the `same` command."""
    for found in sorted(Path(top).glob("*/.jobs/sweep.json"), reverse=True):
        path = found.parents[1]
        command = SweepFolder(path).command(keys)
        if not command or command["ended"] or any(command[name] != value for name, value in same.items()):
            continue
        if not SweepFolder(path).locked(wait=0.1):
            note = f"resuming {path}, which is not finished ({option}=FOLDER starts anew)"
            print(note, file=sys.stderr, flush=True)  # before the live table is drawn
            return [f"{option}={quoted(str(path))}"]
    return []


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
