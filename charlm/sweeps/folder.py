"""What a sweep or a search keeps in its folder besides the runs: its command, how far each is, whether to stop.

All of it is plain files, because the jobs may be in other processes, or on other machines that share the disk.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Set
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from charlm.checkpoint.storage import replace_file
from charlm.errors import UsageError

Status = Literal["waiting", "running", "finished", "pruned", "diverged", "failed", "interrupted"]
ENDED = ("finished", "pruned", "diverged", "failed")  # statuses of a job or trial that does not go on
PROCESS = "CHARLM_SWEEP_PROCESS"  # the environment variable that tells a job's process which one has begun it
LOOK = 1.0  # seconds between two looks at the disk, for what is asked at every training step

# What sweep.json says of a sweep: its overrides, those of Hydra itself, Hydra's flags, the overrides of each job, how
# many jobs run at once on a machine and with how many threads each, the process that runs it, and whether all jobs are
# finished.
SWEEP = frozenset({"overrides", "hydra", "flags", "jobs", "parallel", "threads", "process", "ended"})
# And of a search: its overrides, its options, and whether all trials have ended.
SEARCH = frozenset({"overrides", "options", "ended"})


@dataclass
class JobRecord:
    """How far a job of a sweep, or a trial of a search, is.

    `nats` is its best loss so far, `left` an estimate in seconds, `error` why it failed. `loss` names the loss:
    ``best_val_nats``, or ``best_train_nats`` without validation. `settings` identifies the job's whole config, of which
    `overrides` are only what was typed.
    """

    number: int
    overrides: list[str]
    folder: str  # within the sweep's
    status: Status = "waiting"
    model: str | None = None
    settings: str = ""
    epoch: int = 0
    epochs: int | None = None
    loss: str = "best_val_nats"
    nats: float | None = None
    seconds: float = 0.0
    left: float | None = None
    error: str | None = None

    def is_of(self, settings: str, folder: str) -> bool:
        """Whether this is the record of a job with these settings in this folder."""
        return (self.settings, self.folder) == (settings, folder)


class SweepFolder:
    """The files of a sweep or a search below ``.jobs/`` in its folder.

    `process` runs it, as a job knows that has been begun by it: when it is gone, the job shall stop.
    """

    def __init__(self, path: Path, process: str | None = None) -> None:
        self.path, self.jobs, self.process = path, path / ".jobs", process
        self._looked, self._stopping = -LOOK, False

    def remove_if_new(self) -> None:
        """Remove the folder if nothing has begun in it."""
        if self.command() is None:
            with suppress(OSError):
                (self.jobs / "lock").unlink(missing_ok=True)
                self.jobs.rmdir()
            with suppress(OSError):
                self.path.rmdir()

    def remove_unused(self) -> None:
        """Remove a search in which no trial has begun, and its folder if nothing else is in it."""
        shutil.rmtree(self.jobs, ignore_errors=True)
        with suppress(OSError):
            (self.path / "journal.log").unlink(missing_ok=True)
            self.path.rmdir()

    def write_command(self, command: dict[str, Any]) -> None:
        """Write the command, with the keys of `SWEEP` or `SEARCH`."""
        self.jobs.mkdir(parents=True, exist_ok=True)
        replace_file(self.jobs / "sweep.json", json.dumps(command, indent=1).encode())

    def command(self, keys: Set[str] = SWEEP) -> dict[str, Any] | None:
        """What `write_command` wrote; None if this is no sweep, or with ``keys=SEARCH``, no search."""
        content = _read(self.jobs / "sweep.json")
        return content if isinstance(content, dict) and content.keys() >= keys else None

    def read(self, number: int) -> JobRecord | None:
        """The record of a job; None if there is none yet."""
        content = _read(self.jobs / f"{number}.json")
        names = {field.name for field in fields(JobRecord)}
        return JobRecord(**content) if isinstance(content, dict) and content.keys() == names else None

    def records(self) -> dict[int, JobRecord]:
        """The records of all jobs that have one, by number."""
        numbers = sorted(int(path.stem) for path in self.jobs.glob("*.json") if path.stem.isdecimal())
        return {number: record for number in numbers if (record := self.read(number))}

    def write(self, record: JobRecord, *, durable: bool = True) -> None:
        """Replace the record of a job. One that is not `durable` may be lost with the machine, and costs less."""
        path, data = self.jobs / f"{record.number}.json", json.dumps(asdict(record)).encode()
        if durable:
            replace_file(path, data)
        else:
            temporary = path.with_suffix(".new")
            temporary.write_bytes(data)
            os.replace(temporary, path)

    def stop(self, signal: int) -> None:
        """Ask every job to save and stop, and those that have not begun not to begin. Raises nothing."""
        self._stopping = True
        with suppress(OSError), (self.jobs / "stop").open("x") as file:
            file.write(str(signal))

    def stopping(self) -> bool:
        """Whether somebody called `stop`, or the sweep's process is gone, as of a moment ago."""
        if not self._stopping and time.monotonic() >= self._looked + LOOK:
            self._stopping, self._looked = (self.jobs / "stop").exists() or self._left(), time.monotonic()
        return self._stopping

    def _left(self) -> bool:
        """Whether `process` is gone. On another machine, it counts as gone when another one runs the sweep."""
        if self.process is None or (command := self.command()) is None:
            return False
        here = self.process.rpartition(":")[0] == platform.node()
        return command["process"] != self.process or (here and not self.locked())

    def locked(self, wait: float = 0.0) -> bool:
        """Whether a process on this machine runs the sweep or search; looked at for so many seconds.

        A job looks as well, and holds the lock for a moment.
        """
        try:
            with FileLock(self.jobs / "lock", timeout=wait):
                return False
        except (Timeout, OSError):
            return True

    def stopped_by(self) -> int | None:
        """The signal for which the sweep was stopped, or None."""
        content = _read(self.jobs / "stop")
        return content if isinstance(content, int) else None

    def go_on(self) -> None:
        """Take back `stop`."""
        (self.jobs / "stop").unlink(missing_ok=True)
        self._stopping, self._looked = False, -LOOK


def this_process() -> str:
    """The name of this process among those of all machines."""
    return f"{platform.node()}:{os.getpid()}"


def open_sweep(path: Path) -> dict[str, Any]:
    """The command of the sweep in the folder `path`. Raises UsageError if there is none."""
    folder = SweepFolder(path)
    if folder.command(SEARCH) is not None:
        raise UsageError(f"resume={path} is a search, not a sweep: leave out -m")
    command = folder.command()
    if command is None:
        more = "" if path.is_dir() else ", there is no such folder"
        raise UsageError(f"resume={path} is no sweep{more}: give a folder in sweeps/")
    return command


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # missing, or half written by a process that was killed
        return None
