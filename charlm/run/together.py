"""What is checked before several processes train one run, and once they have found each other."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from charlm.data.module import CharDataModule
from charlm.errors import OptionError, UsageError
from charlm.run.compose import Job
from charlm.run.environment import STARTED, WORLD
from charlm.run.processes import free_port
from charlm.run.settings import Settings, TrainerOptions
from charlm.training.ranks import highest


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
    what, few = f"data.batch_size={data.batch_size}", rows != data.batch_size
    if few:
        what += f" ({rows} for this text)"
    step = math.lcm(world, sum(data.options.ratio or [1]))
    below, above = rows // step * step, (rows // step + 1) * step
    middle = (below + above) / 2
    nearest = f"{below} or {above}" if below and rows == middle else str(above if not below or rows > middle else below)
    if few:  # more rows need shorter ones
        nearest = str(below)
    advice = f"set data.batch_size={nearest}" if below or not few else f"lower data.bptt={data.bptt}"
    if world > rows:
        raise UsageError(
            f"{world} processes are more than the rows of a batch, {what}: start at most {rows}, or {advice}"
        )
    if not below and few:
        raise UsageError(f"{what} cannot be divided among {world} processes: {advice}")
    raise UsageError(
        f"{what} cannot be divided among {world} processes: the nearest that can is data.batch_size={nearest}"
    )


def notices(options: TrainerOptions, network: nn.Module) -> list[str]:
    """What several processes do otherwise than one."""
    if options.world > 1 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        return [
            "batch normalisation: each process uses the mean and variance of its own rows, so the losses are not "
            "exactly those of one process"
        ]
    return []


class Together(pl.Callback):
    """Refuses to train in processes whose texts, options or checkpoints differ. `folder` is that of rank 0."""

    def __init__(self, settings: Settings, sha256: str, folder: Path, checkpoint: Path | None) -> None:
        self.settings, self.sha256, self.folder, self.checkpoint = settings, sha256, str(folder), checkpoint

    def same(self) -> tuple[str, ...]:
        """What all processes must have in common."""
        options = json.dumps(self.settings.model_dump(exclude={"resume": True, "trainer": {"threads"}}), default=str)
        resumed = "" if self.checkpoint is None else hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()
        return self.sha256, options, resumed, str(torch.__version__)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare this process with rank 0."""
        if stage != "fit":
            return
        own = self.same()
        self.folder, *first = trainer.strategy.broadcast((self.folder, *own))
        if highest(trainer, int(tuple(first) != own)):
            raise UsageError(
                "the processes of this run have different texts, options, checkpoints or versions of torch: give every "
                "machine the same command, text, checkpoint and environment"
            )
