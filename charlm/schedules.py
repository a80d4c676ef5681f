"""Learning-rate schedules that follow the length of the run."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from charlm.options import number


def step(optimizer: Optimizer, epochs: int, at: float = 2 / 3, factor: float = 0.1) -> MultiStepLR:
    """The full rate for the share `at` of `epochs`, then `factor` of it (the lesson: 6 epochs, then 3)."""
    return MultiStepLR(optimizer, [round(number("schedule.scheduler.at", at) * epochs)], factor)
