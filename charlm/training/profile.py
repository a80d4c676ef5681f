"""Where the time of training goes: PyTorch's profiler over some steps."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import PassThroughProfiler
from torch.profiler import ProfilerActivity, profile, record_function

from charlm.options import Options, PositiveInt

WARM_UP = 10  # steps before the recorded ones: the first ones allocate memory and choose kernels


class ProfileOptions(Options):
    """The extent of ``task=profile``."""

    steps: PositiveInt = 30
    """Batches to record, after some that warm up."""


class Row(NamedTuple):
    """An operation or a phase of training: calls, and seconds of its own without those of the operations in it."""

    name: str
    calls: int
    seconds: float


class Phases(PassThroughProfiler):
    """Names Lightning's phases, such as the callbacks' hooks, in the trace."""

    def profile(self, action_name: str) -> Any:
        """Record what happens in this context under that name."""
        return record_function(action_name)


class Profile(pl.Callback):
    """Records `steps` training batches, then stops training. `rows` are sorted by time, longest first."""

    def __init__(self, steps: int, advance: Callable[[], None] = lambda: None) -> None:
        self.steps, self.advance = steps, advance
        self.rows: list[Row] = []
        self.characters, self.plain_seconds, self.seconds = 0, 0.0, 0.0
        self._done = 0
        self._starts: list[float] = []
        self._profiler: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock, then the profiler."""
        if WARM_UP <= self._done <= WARM_UP + self.steps:
            self._starts.append(time.perf_counter())
        if self._done == WARM_UP + self.steps and self._profiler is None:
            # The median, because the first end of an epoch takes long, and so does anything else on the machine.
            intervals = [after - before for before, after in pairwise(self._starts)]
            self.plain_seconds = self.steps * statistics.median(intervals)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints when it starts and stops
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (
                trainer.strategy.root_device.type == "cuda"
            )
            self._profiler = profile(activities=activities, acc_events=True)
            self._profiler.__enter__()
            self._start = now(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop both after the last batch."""
        self._done += 1
        self.advance()
        if WARM_UP < self._done <= WARM_UP + self.steps:
            self.characters += batch.y.numel() - batch.padded
        if self._done == WARM_UP + 2 * self.steps:
            self.seconds = now(trainer) - self._start
            self._profiler.__exit__(None, None, None)
            self.rows = rows(self._profiler, trainer.strategy.root_device.type)
            trainer.should_stop = True

    def export(self, trace: Path) -> None:
        """Write a trace for Perfetto or chrome://tracing."""
        self._profiler.export_chrome_trace(str(trace))


def now(trainer: pl.Trainer) -> float:
    """The time, once a GPU has finished what it was given."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rows(profiler: Any, device: str) -> list[Row]:
    """The table of a profile: time on the GPU if there is one, else on the CPU."""
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [Row(event.key, event.count, getattr(event, key) / 1e6) for event in profiler.key_averages()]
    return sorted(found, key=lambda row: -row.seconds)
