"""Communication against compute in data-parallel training: python benchmarks/communication.py [PROCESSES] [ROWS].

Trains two models on random ids in several processes on this machine, one thread each, over gloo. For a batch of ROWS x
64 characters it measures a step (forward and backward) of one process alone with fewer and fewer rows, a step of all
processes at once with their share of the rows, the all-reduce of the gradients, and a step with PyTorch's
DistributedDataParallel, which overlaps the two. All times are medians.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM

SYMBOLS, LENGTH = 66, 64
MODELS: dict[str, Callable[[], Network]] = {
    "GRU 256": lambda: GRU(SYMBOLS, 42, 256),
    "LSTM 2x512": lambda: LSTM(SYMBOLS, 64, 512, layers=2),
}
FEWER = (1, 2, 4, 8)  # processes that the compute time is measured for
NETWORKS = {"1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes/s


def median(act: Callable[[], Any], seconds: float = 3.0) -> float:
    """The median time of some calls, in seconds, after two that warm up."""
    times: list[float] = []
    act()
    act()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def step(network: nn.Module, rows: int) -> Callable[[], None]:
    """Forward and backward pass on `rows` rows of random ids."""
    x = torch.randint(SYMBOLS, (rows, LENGTH))

    def act() -> None:
        network.zero_grad()
        F.cross_entropy(network(x).logits.flatten(0, 1), x.flatten()).backward()

    return act


def agreed(count: int, act: Callable[[], Any]) -> float:
    """The median time of `count` calls that all processes make together."""
    times = []
    for _ in range(count):
        dist.barrier()
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def measure(rank: int, world: int, rows: int, port: int) -> None:
    """What one process does; the first prints."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    table = Table("ms a step", *MODELS)
    lines: dict[str, list[str]] = {}
    for create in MODELS.values():
        network = create()
        size = sum(p.numel() for p in network.parameters())
        found: dict[str, float] = {}
        if rank == 0:  # alone on the machine
            for share in FEWER:
                found[f"compute, {rows // share} rows"] = median(step(network, rows // share))
        flat, small = torch.zeros(size), torch.zeros(2, dtype=torch.float64)
        found["compute, all processes at once"] = agreed(12, step(network, rows // world))
        found["all-reduce of the gradients"] = agreed(30, partial(dist.all_reduce, flat))
        found["all-reduce of two numbers"] = agreed(200, partial(dist.all_reduce, small))
        found["DistributedDataParallel"] = agreed(12, step(DistributedDataParallel(network), rows // world))
        lines.setdefault("gradients, MB", []).append(f"{4 * size / 1e6:.2f}")
        for name, seconds in found.items():
            lines.setdefault(name, []).append(f"{1000 * seconds:.2f}")
        for name, rate in NETWORKS.items():  # a ring sends 2 (W - 1) / W times the gradients
            lines.setdefault(f"predicted all-reduce, 8 machines, {name}", []).append(
                f"{1000 * 2 * 7 / 8 * 4 * size / rate:.2f}"
            )
    if rank == 0:
        for name, values in lines.items():
            table.add_row(name, *values)
        Console(width=100).print(f"{world} processes, {rows} rows of {LENGTH} characters", table)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure with the numbers on the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/communication.py", description=__doc__)
    parser.add_argument("processes", type=int, nargs="?", default=2)
    parser.add_argument("rows", type=int, nargs="?", default=64)
    asked = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(measure, (asked.processes, asked.rows, port), nprocs=asked.processes)


if __name__ == "__main__":
    main()
