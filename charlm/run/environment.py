"""Which of several processes (ranks) of a run this one is. Imports nothing heavy: it is asked before Hydra starts.

The variables are those of torchrun, which `charlm.run.processes` sets for the processes that it starts, too.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from charlm.errors import UsageError

PARENT = int(os.environ.get("CHARLM_PARENT") or os.getppid())  # rank 0 tells: it may have ended since
BY_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ  # it has started this process
STARTED = {"LOCAL_RANK", "RANK", "WORLD_SIZE"} <= os.environ.keys()  # so has it, or rank 0
WORLD = int(os.environ["WORLD_SIZE"]) if STARTED else 1  # the number of processes
RANK = int(os.environ["RANK"]) if STARTED else 0  # the number of this one; rank 0 alone prints and writes
PATIENCE = 5  # seconds in which rank 0 may report an error before another rank does


def of_this_rank(arguments: Sequence[str]) -> list[str]:
    """The command line for this rank: all but rank 0 leave the run folder alone."""
    if WORLD > 1 and {"-m", "--multirun"} & set(arguments):
        raise UsageError("a multirun cannot be started with torchrun: start its jobs one by one, without -m")
    if RANK == 0:
        return list(arguments)
    return [argument for argument in arguments if not argument.startswith("hydra.run.dir=")] + ["hydra.run.dir=."]


@contextmanager
def as_one_of_several() -> Iterator[None]:
    """All but rank 0 print nothing but errors of their own. A rank whose parent process has ended ends, too.

    Most errors occur in every rank: rank 0 reports them, and whoever has started the others ends them before they do.
    """
    if not STARTED:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not a line for each closed connection
    threading.Thread(target=watch_parent, daemon=True).start()
    if RANK == 0:
        yield
        return
    said, status = io.StringIO(), 0
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(said):
        try:
            yield
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
    if status and status < 128 and said.getvalue():
        parent_ended(PATIENCE)
        print(f"error: process {RANK}: {said.getvalue().removeprefix('error: ')}", end="", file=sys.stderr, flush=True)
    if status:
        os._exit(status)  # C++ would complain of threads that still wait for other ranks


def parent_ended(seconds: float) -> bool:
    """Whether the process that has started this one ends within some seconds."""
    until = time.monotonic() + seconds
    while os.getppid() == PARENT and time.monotonic() < until:
        time.sleep(0.1)
    return os.getppid() != PARENT


def watch_parent() -> None:
    """End this process, if need be by force, after its parent has ended."""
    while not parent_ended(60):
        pass
    time.sleep(3)  # it may notice by itself
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)
