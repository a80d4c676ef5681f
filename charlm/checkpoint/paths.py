"""Run folders: where a run goes, and what is meant by ``resume=``. Loads nothing heavy: every start needs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from charlm.errors import UsageError


def run_folder(resume: object, fresh: str) -> str:
    """Where a run goes: the folder of the run that `resume` means, or else `fresh`. For ``hydra.run.dir``."""
    if resume is None:
        return fresh
    folder = folder_of(Path(str(resume)))
    # Hydra makes the folder before anything is checked; a name that is wrong must not become one.
    return str(folder) if folder.is_dir() else "."


def folder_of(where: Path) -> Path:
    """The run folder of `where`, which is that folder or a file in its ``checkpoints``."""
    if where.suffix == ".ckpt" or where.name == "checkpoints":
        return where.absolute().parent.parent if where.suffix == ".ckpt" else where.absolute().parent
    return where


def resume_command(folder: Path) -> str:
    """The command that resumes the run in `folder`."""
    return f"python train.py {shlex.quote(f'resume={quoted(str(folder))}')}"


def quoted(value: str) -> str:
    """`value` as it must stand on Hydra's command line."""
    if re.fullmatch(r"[A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*", value):  # without a slash, 1e3 would be a number
        return value
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), value) + "'"


def find_resume_checkpoint(resume: object) -> Path:
    """The checkpoint to resume from: the file itself, or a run folder's ``last.ckpt``."""
    if not str(resume).strip():
        raise UsageError("resume= is empty: give a run's folder, or a .ckpt file in its checkpoints")
    where = Path(str(resume))
    if where.name == "checkpoints":
        where = folder_of(where)
    if where.is_file() and where.suffix == ".ckpt":
        if where.absolute().parent.name != "checkpoints":
            raise UsageError(f"resume={where} is not in a run's checkpoints folder: resume a run with resume=FOLDER")
        return where
    if not where.is_dir():
        raise UsageError(f"there is no run at resume={where}: give a run's folder, or a .ckpt file in its checkpoints")
    last = where / "checkpoints/last.ckpt"
    if not last.is_file():
        raise UsageError(
            f"resume={where}: there is no checkpoints/last.ckpt in it, so there is nothing to go on from: start anew"
        )
    return last


def find_checkpoint(where: str | Path | None = None) -> Path:
    """The checkpoint file meant by `where`: a file, a run folder, or None for the newest run here.

    Of a run, ``best.ckpt`` goes before ``last.ckpt``. Raises UsageError when there is none.
    """
    if where is not None:
        path = Path(where)
        if not path.is_dir():
            return path
        found = [path / folder / f"{name}.ckpt" for folder in ("checkpoints", ".") for name in ("best", "last")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise UsageError(f"{path} is a folder without checkpoints/best.ckpt: give --checkpoint FILE")
        return found[0]
    patterns = ("runs/*/checkpoints/*.ckpt", "sweeps/*/*/checkpoints/*.ckpt")
    newest = max((f for p in patterns for f in Path().glob(p)), key=lambda f: f.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError("there is no run in runs/ or sweeps/ here: train one with train.py or give --checkpoint FILE")
    return find_checkpoint(newest.parent.parent)
