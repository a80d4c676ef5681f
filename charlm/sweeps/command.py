"""``python train.py -m resume=SWEEP``, and the same command again: which sweep it goes on with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser

from charlm.checkpoint.paths import quoted, resume_command
from charlm.errors import UsageError
from charlm.run.suggest import readable
from charlm.sweeps.folder import SweepFolder, open_sweep

TAKE_A_VALUE = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")
EXTENDABLE = ("trials", "minutes")  # the options of a search that may change when it goes on


def expanded(arguments: Sequence[str]) -> list[str]:
    """The arguments of a multirun with the folder and the command of the sweep that is resumed; others as they are.

    Raises UsageError for a folder that is no sweep, and for a change of what its jobs are.
    """
    flags, hydra, task = split(arguments)
    if "-m" not in flags:
        return expanded_search(arguments)
    asked = [argument for argument in task if name_of(argument) == "resume"]
    folders = [argument for argument in hydra if name_of(argument) == "hydra.sweep.dir"]
    if asked:
        path = Path(str(OverridesParser.create().parse_override(asked[-1]).value()))
        if (path / "checkpoints").is_dir():
            raise UsageError(f"resume={path} is one run, not a sweep: leave out -m")
        command = open_sweep(path)
        if others := [argument for argument in task if argument not in asked and argument not in command["overrides"]]:
            raise UsageError(f"{others[0]} cannot change in a resumed sweep: leave it out, or start a new sweep")
        if folders:
            raise UsageError(f"{folders[0]}: a resumed sweep stays in its own folder, leave it out")
        replaced = {name_of(argument) for argument in hydra}
        earlier = [o for o in command["hydra"] if name_of(o) not in replaced | {"hydra.sweep.dir", "hydra.mode"}]
        if "hydra/launcher" in replaced:  # its options are others
            earlier = [override for override in earlier if not name_of(override).startswith("hydra.launcher.")]
        saved = command.get("flags", []) if flags == ["-m"] else []
        own = f"hydra.sweep.dir={quoted(str(path))}"
        return ["-m", *flags[1:], *saved, *command["overrides"], *earlier, *hydra, own]
    if folders:
        return list(arguments)
    for sweep in sorted(Path("sweeps").glob("*/.jobs/sweep.json"), reverse=True):
        path = sweep.parents[1]
        found: dict[str, Any] = SweepFolder(path).command() or {"overrides": None}
        same = (found["overrides"], found.get("flags")) == (task, flags[1:])
        if same and not found.get("ended") and not locked(path):
            note = f"going on with {path}, which is not finished (hydra.sweep.dir=FOLDER starts anew)"
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
    hydra = [override for override in overrides if name_of(override).startswith(("hydra.", "hydra/"))]
    return flags, hydra, [override for override in overrides if override not in hydra]


def name_of(override: str) -> str:
    """The option that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def expanded_search(arguments: Sequence[str]) -> list[str]:
    """The arguments with the folder and the command of the search that goes on; others as they are.

    Raises UsageError for a change of what its trials are.
    """
    if resumed := resumed_search(arguments):
        return [*resumed[0], f"hydra.run.dir={quoted(str(resumed[1]))}"]
    if any(argument.startswith(("resume=", "hydra.run.dir=")) for argument in arguments):
        return list(arguments)
    task = [argument for argument in arguments if not argument.lstrip("+~").startswith("hydra")]
    for found in sorted(Path("searches").glob("*/.jobs/search.json"), reverse=True):
        path = found.parents[1]
        command = SweepFolder(path, "search").command()
        if command and command["overrides"] == task and not command.get("ended"):
            print(f"going on with {path}, which is not finished (hydra.run.dir=FOLDER starts anew)", file=sys.stderr)
            return [*arguments, f"hydra.run.dir={quoted(str(path))}"]
    return list(arguments)


def resumed_search(arguments: Sequence[str]) -> tuple[list[str], Path] | None:
    """The overrides and the folder of the search that ``resume=`` names; None if it names none.

    Raises UsageError for a change of what its trials are.
    """
    asked = readable([argument for argument in arguments if argument.startswith("resume=")])
    if not asked:
        return None
    path = Path(str(OverridesParser.create().parse_override(asked[-1]).value()))
    command = SweepFolder(path, "search").command()
    if command is None:
        return None
    more = [argument for argument in arguments if not argument.startswith("resume=")]
    if others := [argument for argument in without_limits(more) if argument not in command["overrides"]]:
        raise UsageError(
            f"{others[0]} cannot change in a search that goes on, only search.trials and search.minutes can: leave it "
            f"out, or start a new search"
        )
    limits = [argument for argument in more if argument not in without_limits(more)]
    names = {limit.partition("=")[0] for limit in limits}
    kept = [override for override in command["overrides"] if override.partition("=")[0] not in names]
    return [*kept, *limits], path


def without_limits(overrides: Sequence[str]) -> list[str]:
    """`overrides` without how long a search may be."""
    limits = tuple(f"search.{name}=" for name in EXTENDABLE)
    return [override for override in overrides if not override.lstrip("+").startswith(limits)]


def go_on(path: Path) -> str:
    """How to go on with the search in the folder `path`."""
    return f"go on with\n  {resume_command(path)}"


def locked(path: Path) -> bool:
    """Whether another process runs the sweep in `path`."""
    try:
        with FileLock(path / ".jobs/lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True
