"""Files that are whole, whatever happens: each is either the old or the new one, on the disk and not only in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from charlm.errors import UsageError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a crash, a kill or a full disk in the middle leaves the one that was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a kill left behind, or a link that leads elsewhere
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # not every file system can do this for a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # without it, the new name may be lost with the power
        finally:
            os.close(folder)


class Store:
    """Writes a run's files, and keeps in memory what the disk will not take until it does.

    A full disk does not stop training: `warn` is told once, what could not be written is tried again with
    every further file, and `close` raises UsageError where it never came to be.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._pending: dict[Path, bytes] = {}
        self._failing = False

    def write(self, path: Path, data: bytes) -> None:
        """Replace the file `path`, now or as soon as the disk takes it."""
        self._pending[path] = data  # what is newer takes the place of what is still waiting
        if error := self._flush():
            if not self._failing:
                self.warn(f"{error}; training continues, and the next checkpoint tries again")
        elif self._failing:
            self.warn("what could not be written is on the disk now")
        self._failing = bool(self._pending)

    def _flush(self) -> str:
        """Write what waits; returns what is in the way."""
        reason = ""
        for path, data in list(self._pending.items()):
            try:
                replace_file(path, data)
            except OSError as error:
                reason = f"{path} cannot be written: {error.strerror or error}"
            else:
                del self._pending[path]
        return reason

    def close(self) -> None:
        """Raise UsageError if something still cannot be written."""
        if error := self._flush():
            raise UsageError(f"{error}; free some space there and resume the run")
