"""How many CPU threads train fastest now: measured, because small networks beside another process want one."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F

from charlm.data.module import CharDataModule
from charlm.models.network import Network
from charlm.run.environment import STARTED
from charlm.run.settings import TrainerOptions
from charlm.training import random_state

SECONDS = 0.5  # for the whole measurement, or as long as one step takes
GAIN = 1.1  # how much faster more threads must be: fewer disturb other processes less, and are disturbed less


@contextmanager
def own_threads() -> Iterator[None]:
    """Restore the number of threads afterwards, so that a run in the same process starts from it again."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(options: TrainerOptions, network: Network, data: CharDataModule) -> TrainerOptions:
    """`options` with the number of threads to train with, which PyTorch is told; a measured one for ``auto``.

    The network and the random generators are left as they were.
    """
    asked, most = options.threads, torch.get_num_threads()
    if options.processes > 1 and not STARTED and "OMP_NUM_THREADS" not in os.environ:
        most = max(1, most // options.processes)
    if asked == "auto":
        asked = most  # of processes that rank 0 has started: as many as it has chosen
        if most > 1 and not STARTED and (options.accelerator == "cpu" or not torch.cuda.is_available()):
            with suppress(Exception):  # what is wrong with the network is reported when it is trained
                asked = fastest(training_step(network, data), candidates(most))
    if asked is not None:
        torch.set_num_threads(asked)
    return options.model_copy(update={"threads": asked})


def candidates(most: int) -> list[int]:
    """Powers of two below `most`, and `most` itself."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def training_step(network: Network, data: CharDataModule) -> Callable[[], None]:
    """Forward and backward pass of a copy of `network` on the first training batch, in single precision."""
    copied, batch = copy.deepcopy(network), next(iter(data.train_dataloader()))

    def step() -> None:
        before = random_state.collect()  # for dropout
        logits = copied(batch.x).logits.float()
        F.cross_entropy(logits.flatten(0, 1), batch.y[:, -logits.shape[1] :].flatten()).backward()
        random_state.restore(before)

    return step


def fastest(step: Callable[[], None], numbers: list[int], clock: Callable[[], float] = time.perf_counter) -> int:
    """The number of threads, one of the ascending `numbers`, with which `step` takes least time (the median).

    The numbers take turns, so that a burst of other work hits all of them.
    """
    times: dict[int, list[float]] = {number: [] for number in numbers}
    begin = clock()
    while clock() < begin + SECONDS:
        for number in numbers:
            torch.set_num_threads(number)
            start = clock()
            step()
            times[number].append(clock() - start)
            if clock() > begin + SECONDS:  # a large network: only what was measured counts
                break
    # The first call allocates memory and starts threads; of a network so large that there is no second one, it counts.
    typical = {number: statistics.median(taken[1:] or taken) for number, taken in times.items() if taken}
    chosen = numbers[0]
    for number in list(typical)[1:]:
        if typical[number] * GAIN < typical[chosen]:
            chosen = number
    return chosen
