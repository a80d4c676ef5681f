"""Learning-rate schedules that follow the length of the run; lengths are in epochs.

A schedule of `conf/schedule/` may read ``${schedule.steps_per_epoch}`` when it moves at every step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, MultiStepLR

from charlm.checks import check_int, check_number
from charlm.errors import UsageError


def step(optimizer: Optimizer, epochs: int, at: float | list[float] = 2 / 3, factor: float = 0.1) -> MultiStepLR:
    """The full rate until `at`, then `factor` of it: the lesson's `set_lrs`. Moves at each epoch.

    `at` is a share of `epochs` (a float below 1), an epoch (a whole number: after that many), or a list
    of either; the rate is multiplied by `factor` at each of them.
    """
    name, milestones = "schedule.scheduler.at", []
    for value in at if isinstance(at, list) else [at]:
        if check_number(name, value) >= 1 and not isinstance(value, int):
            raise UsageError(f"{name}={value} must be a share of the run below 1, or a whole number of epochs")
        milestones.append(value if isinstance(value, int) else round(value * epochs))
    return MultiStepLR(optimizer, milestones, check_number("schedule.scheduler.factor", factor))


class HalfCosine(CosineAnnealingLR):
    """Stays at the lowest rate after its end, where PyTorch's would rise again: a resumed run may grow longer."""

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group."""
        over = self.last_epoch > self.T_max
        return [self.eta_min for _ in self.base_lrs] if over else super().get_lr()


def cosine(optimizer: Optimizer, epochs: int, steps_per_epoch: int, eta_min: float = 0.0) -> HalfCosine:
    """From the full rate down to `eta_min` over `epochs` along half a cosine. Moves at each step."""
    return HalfCosine(optimizer, epochs * steps_per_epoch, lowest(optimizer, eta_min))


def sgdr(
    optimizer: Optimizer, steps_per_epoch: int, cycle_epochs: int = 1, cycle_mult: int = 2, eta_min: float = 0.0
) -> CosineAnnealingWarmRestarts:
    """SGDR: cosine annealing with warm restarts (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5).

    The rate falls from full to `eta_min` over a cycle, then starts again; the first cycle takes
    `cycle_epochs` epochs, each later one `cycle_mult` times as long as the one before. Moves at each step.
    """
    first = check_int("schedule.scheduler.cycle_epochs", cycle_epochs, 1) * steps_per_epoch
    mult = check_int("schedule.scheduler.cycle_mult", cycle_mult, 1)
    return CosineAnnealingWarmRestarts(optimizer, first, mult, lowest(optimizer, eta_min))


def lowest(optimizer: Optimizer, eta_min: float) -> float:
    """`eta_min`, if the rate can fall to it."""
    full = min(group["lr"] for group in optimizer.param_groups)
    if check_number("schedule.scheduler.eta_min", eta_min) > full:
        raise UsageError(f"schedule.scheduler.eta_min={eta_min} must not be above the learning rate {full}")
    return eta_min


MOVES: dict[Any, str] = {step: "epoch", cosine: "step", sgdr: "step"}


def check_interval(schedule: Any, interval: str) -> None:
    """Raise UsageError where one of the schedules above would move at other times than it counts in."""
    moves = MOVES.get(getattr(schedule, "func", None), interval)  # others count as they like
    if moves != interval:
        raise UsageError(f"schedule.interval={interval} does not fit this schedule, which moves at each {moves}")


def cycles_begun(schedule: CosineAnnealingWarmRestarts) -> int:
    """How many of SGDR's cycles are over or have begun; at a restart, how many are over."""
    steps, length, cycles = schedule.last_epoch, schedule.T_0, 0
    while steps > 0:
        steps, length, cycles = steps - length, length * schedule.T_mult, cycles + 1
    return cycles
