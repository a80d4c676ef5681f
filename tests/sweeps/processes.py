"""The processes of sweeps and Ray clusters, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path


def processes(*words: str) -> list[int]:
    """The processes with all of these words in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def job_process(sweep: Path, number: int) -> int:
    """The process of a job, which holds its lock."""
    for process in processes():
        held = []
        for file in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):
                held.append(os.readlink(file))
        if str(sweep / f".jobs/{number}.lock") in held:
            return process
    raise AssertionError(f"job {number} does not run")


def tree(process: int) -> list[int]:
    """A process and all that it has started."""
    found = [process]
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += [other for child in file.read_text().split() for other in tree(int(child))]
    return found


def kill(node: subprocess.Popen[bytes]) -> None:
    """All processes of a Ray node at once, as if its machine were gone."""
    for process in tree(node.pid):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    node.wait()
