"""The learning-rate range test: train for some steps at a growing learning rate, and see where the loss falls.

Smith 2017, "Cyclical learning rates for training neural networks", arXiv:1506.01186, section 3.3; with an exponential
growth, a smoothed loss and a stop at divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pydantic import model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from charlm.errors import OptionError
from charlm.options import Options, Positive, PositiveInt
from charlm.training.parameter_groups import current_lr

MEMORY = 0.95  # of the smoothed loss: how much of it remains after a step
DIVERGED = 2.0  # times the lowest smoothed loss
SKIPPED = 0.1  # of the range, at its beginning: the first losses fall steeply at any learning rate


class RangeOptions(Options):
    """The range of ``task=lr_find``."""

    lowest: Positive = 1e-6
    """Learning rate of the first step."""
    highest: Positive = 10.0
    """Learning rate of the last step; the test stops earlier where the loss diverges."""
    steps: PositiveInt = 200
    """Optimiser steps."""

    @model_validator(mode="after")
    def _not_empty(self) -> RangeOptions:
        if self.highest <= self.lowest:
            raise OptionError("highest", f"must be more than lr_find.lowest={self.lowest}", self.highest)
        return self


class Point(NamedTuple):
    """One step: its learning rate, its loss in nats per character, and the smoothed loss."""

    learning_rate: float
    nats: float
    smoothed: float


def growing(optimizer: Optimizer, options: RangeOptions) -> LambdaLR:
    """The learning rate of the first parameter group from lowest to highest; the others keep their ratio to it."""
    full = current_lr(optimizer)
    if full == 0:
        raise OptionError("optimizer.lr", "must be more than 0 for task=lr_find", full)
    growth = (options.highest / options.lowest) ** (1 / max(1, options.steps - 1))
    return LambdaLR(optimizer, lambda step: options.lowest / full * growth**step)


class RangeTest(pl.Callback):
    """Records a `Point` at every optimiser step, and stops training where the loss diverges."""

    def __init__(self, advance: Callable[[], None] = lambda: None) -> None:
        self.points: list[Point] = []
        self.advance = advance
        self._before: tuple[float, int] = (0.0, 0)
        self._mean = 0.0
        self._lr = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The means of an epoch start at 0."""
        self._before = (0.0, 0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the learning rate of the coming step."""
        self._lr = current_lr(trainer.optimizers[0])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the point of a step, which may have read several batches."""
        if trainer.global_step == len(self.points):
            return
        total, count = pl_module.train_nats.sum_and_count()
        nats = (total - self._before[0]) / max(1, count - self._before[1])
        self._before = (total, count)
        self._mean = MEMORY * self._mean + (1 - MEMORY) * nats
        smoothed = self._mean / (1 - MEMORY ** (len(self.points) + 1))
        self.points.append(Point(self._lr, nats, smoothed))
        self.advance()
        lowest = min(point.smoothed for point in self.points)
        if not smoothed <= DIVERGED * lowest:  # also true for NaN
            trainer.should_stop = True


def suggest(points: Sequence[Point]) -> float | None:
    """A learning rate to train with: halfway, over the logarithm, between two rules of thumb.

    One takes the rate at which the smoothed loss falls fastest, which is cautious; the other a tenth of the rate at
    which it is lowest, which is bold where the loss stays low for long. None if the loss does not fall.
    """
    smoothed = [point.smoothed for point in points]
    bottom = min(range(len(points)), key=lambda i: smoothed[i] if math.isfinite(smoothed[i]) else math.inf, default=0)
    first = round(SKIPPED * bottom)
    width = max(1, (bottom - first) // 10)  # a slope over several points, so that noise does not decide
    slopes = {i + width // 2: smoothed[i + width] - smoothed[i] for i in range(first, bottom - width + 1)}
    steepest = min(slopes, key=lambda i: slopes[i], default=None)
    if steepest is None or slopes[steepest] >= 0:
        return None
    return math.sqrt(points[steepest].learning_rate * points[bottom].learning_rate / 10)
