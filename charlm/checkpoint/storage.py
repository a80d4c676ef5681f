"""Atomic, durable writes: whatever happens, a file is either the old or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from charlm.errors import UsageError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: a crash, a kill or a full disk leaves the previous file in place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link to somewhere else
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # not every file system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise a power failure may lose the new name
        finally:
            os.close(folder)


class Store:
    """Writes the files of a run, and keeps in memory what cannot be written yet.

    A full disk does not stop training: `warn` is called once, each further write tries again, and `close` raises
    UsageError if something is still not written. A folder that was deleted is made again.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._pending: dict[Path, bytes] = {}
        self._failing = False
        self._remedy = ""  # what the user can do about the last problem

    def write(self, path: Path, data: bytes) -> None:
        """Replace the file `path`, now or as soon as possible."""
        self._pending[path] = data  # newer data replaces what is still pending
        if error := self._flush():
            if not self._failing:
                self.warn(f"{error}; training continues, and the next checkpoint tries again")
        elif self._failing:
            self.warn("everything that could not be written before is on the disk now")
        self._failing = bool(self._pending)

    def _flush(self) -> str:
        """Write what is pending; returns the problem, or an empty string."""
        reason = ""
        for path, data in list(self._pending.items()):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
            except OSError as error:
                self._remedy = "free some space there" if error.errno in FULL else "make it writable"
                reason = f"{path} cannot be written: {error.strerror or error}"
            else:
                del self._pending[path]
        return reason

    def close(self) -> None:
        """Write what is pending. Raises UsageError if that is impossible."""
        if error := self._flush():
            raise UsageError(f"{error}; {self._remedy} and resume the run")


class NoStore(Store):
    """Writes nothing: for all but the first of several processes."""

    def __init__(self) -> None:
        super().__init__(lambda text: None)

    def write(self, path: Path, data: bytes) -> None:
        """Do nothing."""
