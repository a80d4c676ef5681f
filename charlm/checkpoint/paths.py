"""Run folders and their checkpoints. Imports nothing heavy, because every start of a program needs it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from charlm.errors import UsageError

StrPath = str | os.PathLike[str]


def run_folder(resume: object, fresh: str) -> str:
    """The folder of a run, for ``hydra.run.dir``: that of the run to resume, or else `fresh`."""
    if resume is None:
        return made(fresh)
    folder = folder_of(Path(str(resume)))
    # Hydra creates the folder before anything is checked, and must not create one with a wrong name.
    return str(folder) if folder.is_dir() else "."


def run_name(task: str, init_from: object, model: str) -> str:
    """What the name of a new run's folder says about it besides its text."""
    name = model if init_from is None else "finetuned"  # the model is that of a file
    return name if task == "train" else f"{task}_{name}"


def model_name(choice: object, overrides: Iterable[str]) -> str:
    """The name of a model: the chosen config, or the class that ``model._target_=`` names instead."""
    pairs = (override.partition("=") for override in overrides)
    targets = [value for name, _, value in pairs if name.lstrip("+") == "model._target_"]
    return targets[-1].strip("'\"").rpartition(".")[2] if targets else str(choice)


def made(folder: str) -> str:
    """Make `folder`, or one with a number if it exists: several processes may start runs in one second."""
    for name in itertools.chain([folder], (f"{folder}_{number}" for number in itertools.count(2))):
        try:
            Path(name).mkdir(parents=True)
        except OSError:
            if os.path.lexists(name):
                continue  # anything else, such as a folder that cannot be written, is reported when the run begins
        return name
    raise AssertionError("an endless list has ended")


@contextmanager
def removed_if_empty(folder: Path, *, new: bool) -> Iterator[None]:
    """Remove `folder` if it is `new` and the run ends with an exception before anything is in it."""
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def folder_of(where: Path) -> Path:
    """The run folder that `where` names: the folder itself, its ``checkpoints``, or a file in there."""
    if where.suffix == ".ckpt" or where.name == "checkpoints":
        return where.absolute().parent.parent if where.suffix == ".ckpt" else where.absolute().parent
    return where


def program(name: str) -> str:
    """The path of the program `name`, such as train.py, from the current folder; its name if it is not in a clone."""
    path = Path(__file__).parents[2] / name
    return shlex.quote(min(os.path.relpath(path), str(path), key=len)) if path.is_file() else name


def resume_command(folder: Path) -> str:
    """The command that resumes the run in `folder`."""
    return f"python {program('train.py')} {shlex.quote(f'resume={quoted(str(folder))}')}"


def quoted(value: str) -> str:
    """`value`, quoted for Hydra's command line."""
    if re.fullmatch(r"[A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*", value):  # without a slash, 1e3 would be a number
        return value
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), value) + "'"


def find_resume_checkpoint(resume: object) -> Path:
    """The checkpoint to resume from: a file, or the ``last.ckpt`` of a run folder."""
    if not str(resume).strip():
        raise UsageError("resume= is empty: give a run's folder, or a .ckpt file in its checkpoints")
    where = Path(str(resume))
    if where.name == "checkpoints":
        where = folder_of(where)
    if where.name == "average.ckpt":
        raise UsageError(f"resume={where} holds averaged weights, with which no run goes on: give the run's folder")
    if where.is_file() and where.suffix == ".ckpt":
        if where.absolute().parent.name != "checkpoints":
            raise UsageError(f"resume={where} is not in a run's checkpoints folder: resume a run with resume=FOLDER")
        return where
    if not where.is_dir():
        raise UsageError(f"there is no run at resume={where}: give a run's folder, or a .ckpt file in its checkpoints")
    last = where / "checkpoints/last.ckpt"
    if not last.is_file():
        raise UsageError(f"resume={where}: it has no checkpoints/last.ckpt to resume from, start a new run")
    return last


def find_checkpoint(where: StrPath | None = None) -> Path:
    """The checkpoint that `where` names: a file, a run folder, or None for the newest run below the current folder.

    In a run folder, ``best.ckpt`` is preferred to ``last.ckpt``. Raises UsageError if there is none.
    """
    if where is not None:
        path = Path(where)
        if not path.is_dir():
            return path
        found = [path / folder / f"{name}.ckpt" for folder in ("checkpoints", ".") for name in ("best", "last")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise UsageError(f"{path} is a folder without checkpoints/best.ckpt: give a run folder or a .ckpt file")
        return found[0]
    patterns = ("runs/*/checkpoints/*.ckpt", "sweeps/*/*/checkpoints/*.ckpt")
    newest = max((f for p in patterns for f in Path().glob(p)), key=lambda f: f.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError("there is no run in runs/ or sweeps/ here: train one with train.py or give --checkpoint FILE")
    return find_checkpoint(newest.parent.parent)
