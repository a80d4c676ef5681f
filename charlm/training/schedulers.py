"""Learning-rate schedulers that know the length of the run.

Their arguments ``epochs`` and ``steps_per_epoch`` are filled in when a run is built. Those that begin with a warm-up
are in `charlm.training.warmups`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
)

from charlm.errors import OptionError, as_usage_error
from charlm.options import Count, NonNegative, PositiveInt, Probability, checked
from charlm.training.warmups import Minimum, fraction_or, linear, lowest, one_cycle, warmup_cosine, wsd

Moment = Annotated[int | float, fraction_or("epochs")]


@checked
def step(
    optimizer: Optimizer,
    epochs: PositiveInt,
    at: Annotated[
        Moment | list[Moment],
        Field(description="When to lower the learning rate: a fraction of the run, after so many epochs, or a list."),
    ] = 2 / 3,
    factor: Annotated[NonNegative, Field(description="Factor of the learning rate each time.")] = 0.1,
) -> MultiStepLR:
    """The full learning rate at first, then a fraction of it: the lesson's `set_lrs`. Steps after each epoch."""
    moments = at if isinstance(at, list) else [at]
    return MultiStepLR(optimizer, [m if isinstance(m, int) else round(m * epochs) for m in moments], factor)


class HalfCosine(CosineAnnealingLR):
    """Stays at the minimum after its end, where PyTorch's would rise again: a resumed run may be longer."""

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group."""
        over = self.last_epoch > self.T_max
        return [self.eta_min for _ in self.base_lrs] if over else super().get_lr()


@checked
def cosine(
    optimizer: Optimizer, epochs: PositiveInt, steps_per_epoch: PositiveInt, eta_min: Minimum = 0.0
) -> HalfCosine:
    """From the full learning rate down to the minimum along half a cosine. Steps after each training step."""
    return HalfCosine(optimizer, epochs * steps_per_epoch, lowest(optimizer, eta_min))


@checked
def sgdr(
    optimizer: Optimizer,
    steps_per_epoch: PositiveInt,
    cycle_epochs: Annotated[PositiveInt, Field(description="Epochs in the first cycle.")] = 1,
    cycle_mult: Annotated[PositiveInt, Field(description="Length of each cycle relative to the one before.")] = 2,
    eta_min: Minimum = 0.0,
) -> CosineAnnealingWarmRestarts:
    """SGDR: cosine annealing with warm restarts (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5).

    The learning rate falls from full to the minimum over a cycle, then starts again. Steps after each training step.
    """
    first = cycle_epochs * steps_per_epoch
    return CosineAnnealingWarmRestarts(optimizer, first, cycle_mult, lowest(optimizer, eta_min))


@checked
def plateau(
    optimizer: Optimizer,
    factor: Annotated[Probability, Field(description="Factor of the learning rate each time.")] = 0.5,
    patience: Annotated[Count, Field(description="Losses in a row without improvement that change nothing.")] = 1,
    threshold: Annotated[Probability, Field(description="Smallest improvement, as a fraction of the loss.")] = 1e-4,
    eta_min: Minimum = 0.0,
) -> ReduceLROnPlateau:
    """The full learning rate, and a fraction of it whenever the loss stops improving.

    Reads each validation loss; without a validation split, the training loss of each epoch.
    """
    return ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=threshold, min_lr=lowest(optimizer, eta_min), eps=0.0
    )


INTERVALS: dict[Any, str] = {
    **dict.fromkeys((step, plateau), "epoch"),
    **dict.fromkeys((cosine, sgdr, one_cycle, warmup_cosine, linear, wsd), "step"),
}


def check_interval(scheduler: Any, interval: str) -> None:
    """Raise OptionError if one of the schedulers above would step at another interval than it is made for."""
    needed = INTERVALS.get(getattr(scheduler, "func", None), interval)
    if needed != interval:
        raise OptionError("schedule.interval", f"does not fit this scheduler, which needs {needed!r}", interval)


def build_scheduler(create: Callable[[Optimizer], LRScheduler], optimizer: Optimizer) -> LRScheduler:
    """The scheduler that `create` makes for `optimizer`. Raises UsageError for arguments that it refuses."""
    with as_usage_error("schedule.scheduler"):
        return create(optimizer)


def complete_cycles(trainer: Any) -> int:
    """The number of SGDR cycles that a run has completed; 0 with another scheduler."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(scheduler := config.scheduler, CosineAnnealingWarmRestarts):
            return cycles_begun(scheduler) - (scheduler.T_cur != 0)
    return 0


def cycles_begun(scheduler: CosineAnnealingWarmRestarts) -> int:
    """The number of SGDR cycles that have begun; at a restart, the number of complete ones."""
    steps, length, cycles = scheduler.last_epoch, scheduler.T_0, 0
    while steps > 0:
        steps, length, cycles = steps - length, length * scheduler.T_mult, cycles + 1
    return cycles
