"""Several processes for one run: what is checked before they start, how they start, and how they end together.

Lightning's strategy ``ddp`` trains in them; `charlm.data.shares` cuts the batches. The process that the user starts is
rank 0 and starts the others, unless torchrun has. It does so itself because Lightning's own launcher would end rank 0
by SIGKILL, without a word, when another rank fails, and have every rank choose a run folder.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch

from charlm.checkpoint.paths import resume_command
from charlm.data.module import CharDataModule
from charlm.errors import OptionError, UsageError
from charlm.run.compose import Job
from charlm.run.environment import BY_TORCHRUN, RANK, STARTED, WORLD, parent_ended
from charlm.run.settings import Settings, TrainerOptions
from charlm.training.callbacks.divergence_guard import Diverged
from charlm.training.interrupt import Interrupted
from charlm.training.ranks import RankLost, highest, wait_for_the_first

GRACE = 10  # seconds in which rank 0 may notice by itself that another rank has ended


def check_processes(options: TrainerOptions, job: Job) -> None:
    """Raise UsageError for a number of processes that cannot be started here."""
    world = options.world
    if STARTED and world != WORLD:
        raise UsageError(
            f"torchrun started {WORLD} processes, but trainer.devices={options.processes} on trainer.num_nodes="
            f"{options.num_nodes} make {world}: make them equal, as in torchrun --nproc_per_node=2 train.py "
            f"trainer=ddp trainer.devices=2"
        )
    if world == 1:
        return
    if job.number is not None:
        raise UsageError(
            f"trainer.devices={options.processes}: the jobs of a multirun train in one process each; leave out "
            f"trainer=ddp, or start them one by one without -m"
        )
    gpus = torch.cuda.device_count() if options.accelerator != "cpu" else 0
    needed = options.devices if isinstance(options.devices, int) else 1 + max(options.devices)
    if 0 < gpus < needed:
        has = f"this machine has {gpus}; trainer.accelerator=cpu trains on the CPU"
        raise OptionError("trainer.devices", f"needs {needed} GPUs, but {has}", options.devices)
    if STARTED:
        return
    if options.num_nodes > 1:
        raise UsageError(
            f"trainer.num_nodes={options.num_nodes} needs torchrun on each machine: torchrun "
            f"--nnodes={options.num_nodes} --nproc_per_node={options.processes} --node_rank=0 --master_addr=FIRST "
            f"--master_port=29500 train.py … (--node_rank=1 on the second, and so on)"
        )
    if "MASTER_PORT" in os.environ:
        free_port()
    if job.hydra is None or sys.argv[0] not in sys.orig_argv:
        raise UsageError(
            f"trainer.devices={options.processes}: Python trains in this process alone; start several with "
            f"python train.py trainer=ddp trainer.devices={options.processes} …"
        )


def check_rows(options: TrainerOptions, data: CharDataModule) -> None:
    """Raise UsageError unless every process gets the same number of rows of each batch."""
    rows, world = data.rows["train"], options.world
    if rows % world == 0:
        return
    what = f"data.batch_size={data.batch_size}"
    if rows != data.batch_size:
        what += f" ({rows} for this text)"
    step = math.lcm(world, sum(data.options.ratio or [1]))
    below, above = rows // step * step, (rows // step + 1) * step
    middle = (below + above) / 2
    nearest = f"{below} or {above}" if below and rows == middle else str(above if not below or rows > middle else below)
    if world > rows:
        raise UsageError(
            f"{world} processes are more than the rows of a batch, {what}: start at most {rows}, or set "
            f"data.batch_size={nearest}"
        )
    raise UsageError(
        f"{what} cannot be divided among {world} processes: the nearest that can is data.batch_size={nearest}"
    )


class Together(pl.Callback):
    """Refuses to train in processes whose texts or options differ. `folder` is that of rank 0."""

    def __init__(self, settings: Settings, sha256: str, folder: Path) -> None:
        options = settings.model_dump_json(exclude={"trainer": {"threads"}})
        self.folder, self._same = str(folder), (sha256, options, torch.__version__)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare this process with rank 0."""
        if stage != "fit":
            return
        self.folder, *same = trainer.strategy.broadcast((self.folder, *self._same))
        if highest(trainer, int(tuple(same) != self._same)):
            raise UsageError(
                "the processes of this run have different texts, options or versions of torch: give every machine the "
                "same command, text and environment"
            )


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
        **{"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": str(options.world)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
        **({} if options.threads is None else {"OMP_NUM_THREADS": str(torch.get_num_threads())}),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    children: list[subprocess.Popen[bytes]] = []
    done = threading.Event()
    try:
        with ignored(signal.SIGINT, signal.SIGTERM):  # by the others until they train: this process reacts to them
            for number in range(1, options.world):
                own = {**os.environ, "LOCAL_RANK": str(number), "RANK": str(number)}
                command = [sys.executable, *sys.orig_argv[1:]]
                children.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL))
        threading.Thread(target=watch, args=(children, done), daemon=True).start()
        yield
    except BaseException as error:
        if isinstance(error, RankLost):
            wait_for_any(children, GRACE)
            raise RankLost(ended(children) or str(error)) from None
        raise
    else:
        children = []  # they end by themselves
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
def ignored(*numbers: int) -> Iterator[None]:
    """Ignore signals in this context. A process that is started here ignores them until it handles them."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def watch(children: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
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
def following(together: Together) -> Iterator[None]:
    """End as all ranks end, in another one than rank 0, which reports what all of them know."""
    try:
        yield
    except (Interrupted, Diverged) as error:
        if BY_TORCHRUN:  # it would end rank 0 as soon as this one has ended
            wait_for_the_first()
        raise SystemExit(128 + error.number if isinstance(error, Interrupted) else 2) from None
    except RankLost:
        if RANK == 1 and not BY_TORCHRUN and parent_ended(2):
            raise UsageError(
                f"process 0 of this run was ended; resume it with {resume_command(Path(together.folder))}"
            ) from None
        raise SystemExit(1) from None
