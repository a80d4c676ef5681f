"""What the processes (ranks) of one run tell each other. Each function here is called by all of them together.

One that is called by some ranks only would make the others wait: a decision that depends on a clock, a signal or a file
is made with `anywhere` or the strategy's `broadcast`, or by rank 0 alone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from charlm.errors import UsageError

GPU_INTERVAL = 50  # steps between two checks, or two questions to all ranks, on GPUs: each one waits for the device


class RankLost(UsageError):
    """Another process of this run has ended."""


def several() -> bool:
    """Whether this process is one of several that train together now."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, the same everywhere; a new tensor."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def anywhere(trainer: pl.Trainer, decision: bool) -> bool:
    """Whether any rank decides so in this step. On GPUs, an answer comes only every `GPU_INTERVAL` steps."""
    if not several():
        return decision
    device = trainer.strategy.root_device
    if device.type != "cpu" and trainer.global_step % GPU_INTERVAL:
        return False
    return bool(add_up(torch.tensor(int(decision), device=device)))


def highest(trainer: pl.Trainer, number: int) -> int:
    """The highest `number` of all ranks."""
    if not several():
        return number
    found = torch.tensor(number, device=trainer.strategy.root_device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather(value: Any) -> list[Any] | None:
    """The plain `value` of each rank, its tensors on the CPU, on rank 0; None on the others."""
    found = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found)
    return found


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another process does not answer any more."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(s in str(error) for s in signs)
    )
    return several() and lost


def leave() -> None:
    """Wait for the other ranks, then leave the group: what follows is this process's alone."""
    if several():
        dist.barrier()
        dist.destroy_process_group()


def wait_for_the_first() -> None:
    """Wait in another rank until rank 0 has ended."""
    if several() and dist.get_backend() == "gloo":
        with suppress(RuntimeError):
            dist.barrier()  # rank 0 never comes, but its end closes the connection
