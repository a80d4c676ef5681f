"""Several processes for one run: how they start, and how they end together.

Lightning's strategy ``ddp`` trains in them; `charlm.data.shares` cuts the batches. The process that the user starts is
rank 0 and starts the others, unless torchrun has. It does so itself because Lightning's own launcher would end rank 0
by SIGKILL, without a word, when another rank fails, and have every rank choose a run folder.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from charlm.checkpoint.paths import resume_command
from charlm.errors import UsageError
from charlm.run.environment import BY_TORCHRUN, RANK, STARTED, parent_ended
from charlm.run.settings import TrainerOptions
from charlm.training.callbacks.divergence_guard import Diverged
from charlm.training.interrupt import Interrupted
from charlm.training.ranks import RankLost, wait_for_the_first

GRACE = 10  # seconds in which rank 0 may notice by itself that another rank has ended


def free_port() -> int:
    """Where the processes find each other: MASTER_PORT, or any free port. Raises UsageError if it is in use."""
    wanted = os.environ.get("MASTER_PORT", "0")
    if not wanted.isdecimal() or int(wanted) > 65535:
        raise UsageError(f"MASTER_PORT={wanted} is not the number of a port: leave it out to use a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(wanted)))
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"MASTER_PORT={wanted}: {why}; choose another one, or leave it out") from None
        return int(probe.getsockname()[1])


@contextmanager
def others(options: TrainerOptions) -> Iterator[None]:
    """Start the other processes of a run, and end them if this one fails. Does nothing if there are none, or torchrun.

    A RankLost says which process ended. If this process waits in vain for one that has ended, it ends, too.
    """
    if options.world == 1 or STARTED:
        yield
        return
    ours = {
        "LOCAL_RANK": "0",
        "RANK": "0",
        "WORLD_SIZE": str(options.world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if options.threads is not None:
        ours["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    children: list[subprocess.Popen[bytes]] = []
    done = threading.Event()
    try:
        with held_back(signal.SIGINT, signal.SIGTERM):
            for number in range(1, options.world):
                own = {**os.environ, "LOCAL_RANK": str(number), "RANK": str(number), "CHARLM_PARENT": str(os.getpid())}
                command = [sys.executable, *sys.orig_argv[1:]]
                children.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL))
        threading.Thread(target=end_if_one_is_lost, args=(children, done), daemon=True).start()
        yield
        for child in children:  # they have nothing left to do
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
    except RankLost as error:
        wait_for_any(children, GRACE)
        raise RankLost(ended(children) or str(error)) from None
    finally:
        done.set()
        for child in children:
            child.kill()  # only rank 0 has something to write
            child.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def held_back(*numbers: int) -> Iterator[None]:
    """Hold signals back in this context. A process that is started here gets them as soon as it handles them.

    While it loads its modules, they would end it without a word.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_any(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until one of `children` has failed, but not longer than some seconds."""
    until = time.monotonic() + seconds
    while not ended(children) and time.monotonic() < until:
        time.sleep(0.05)


def ended(children: Sequence[subprocess.Popen[bytes]]) -> str:
    """What happened to the first of `children` that has failed; "" if none has."""
    for number, child in enumerate(children, start=1):
        if status := child.poll():
            how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            return f"process {number} of this run (from 0, PID {child.pid}) was ended {how}"
    return ""


def end_if_one_is_lost(children: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """End this process if one of `children` has failed and it does not notice."""
    while not done.wait(0.5):
        if problem := ended(children):
            if not done.wait(GRACE):
                print(f"error: {problem}, and the others waited for it in vain", file=sys.stderr, flush=True)
                for child in children:
                    child.kill()
                os._exit(1)
            return


@contextmanager
def following(run: Callable[[], str]) -> Iterator[None]:
    """End as all ranks end, in another one than rank 0, which reports what all of them know. `run` names its folder."""
    try:
        yield
    except (Interrupted, Diverged) as error:
        if BY_TORCHRUN:  # it would end rank 0 as soon as this one has ended
            wait_for_the_first()
        raise SystemExit(128 + error.number if isinstance(error, Interrupted) else 2) from None
    except RankLost:
        if RANK == 1 and not BY_TORCHRUN and parent_ended(2):
            raise UsageError(f"process 0 of this run was ended; resume it with {resume_command(Path(run()))}") from None
        raise SystemExit(1) from None
