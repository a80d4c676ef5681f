"""Learning-rate schedulers that begin with a warm-up.

The optimiser's learning rate is the highest one, for each parameter group its own. ``epochs`` and ``steps_per_epoch``
are filled in when a run is built. After the planned end the rate stays as it is: a resumed run may be longer. Steps are
counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from charlm.errors import OptionError
from charlm.options import NonNegative, Positive, PositiveInt, Probability, checked


def fraction_or(unit: str) -> AfterValidator:
    """The check of a duration or a moment: a float is a fraction of the run, an integer a number of `unit`."""

    def check(value: int | float) -> int | float:
        if value < 0 or (isinstance(value, float) and value >= 1):
            raise OptionError("", f"must be a fraction of the run below 1, or a number of {unit}", value)
        return value

    return AfterValidator(check)


Steps = Annotated[int | float, fraction_or("steps")]
Minimum = Annotated[NonNegative, Field(description="Lowest learning rate.")]
Warmup = Annotated[
    Steps, Field(description="How long the rate rises at first: a fraction of the run below 1, or a number of steps.")
]


class OneCycle(OneCycleLR):
    """Stays at the last step's rate and momentum after its end, where PyTorch's would raise an error."""

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group."""
        step, self.last_epoch = self.last_epoch, min(self.last_epoch, self.total_steps - 1)
        try:
            return super().get_lr()
        finally:
            self.last_epoch = step


@checked
def one_cycle(
    optimizer: Optimizer,
    epochs: PositiveInt,
    steps_per_epoch: PositiveInt,
    warmup: Warmup = 0.3,
    div_factor: Annotated[Positive, Field(description="The first rate is the highest one divided by this.")] = 25.0,
    final_div_factor: Annotated[Positive, Field(description="The last rate is the first divided by this.")] = 1e4,
    cycle_momentum: Annotated[
        bool, Field(description="Move the momentum (Adam's first beta) against the rate; false leaves it alone.")
    ] = True,
    base_momentum: Annotated[Probability, Field(description="Momentum at the highest rate.")] = 0.85,
    max_momentum: Annotated[Probability, Field(description="Momentum at the first and the last rate.")] = 0.95,
) -> OneCycle:
    """One cycle (Smith 2018, arXiv:1803.09820): up and down along half cosines, and the momentum down and up.

    Steps after each training step.
    """
    if cycle_momentum and "betas" not in optimizer.defaults and not optimizer.defaults.get("momentum"):
        without = f"cannot move the momentum of {type(optimizer).__name__}, which has none: set it to false"
        also = ", or optimizer.momentum=0.9" if "momentum" in optimizer.defaults else ""
        raise OptionError("cycle_momentum", without + also, True)
    total = epochs * steps_per_epoch
    rising = steps_of("warmup", warmup, total)
    return OneCycle(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total,
        pct_start=rising / total if rising > 1 else 0.0,  # the rate is highest at step `rising` - 1, counted from 0
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


@checked
def warmup_cosine(
    optimizer: Optimizer,
    epochs: PositiveInt,
    steps_per_epoch: PositiveInt,
    warmup: Warmup = 0.05,
    eta_min: Minimum = 0.0,
) -> LambdaLR:
    """Up to the full learning rate along a line, then down to the minimum along half a cosine.

    Steps after each training step.
    """
    total = epochs * steps_per_epoch
    return warm(optimizer, steps_of("warmup", warmup, total), total, half_cosine, eta_min)


@checked
def linear(
    optimizer: Optimizer,
    epochs: PositiveInt,
    steps_per_epoch: PositiveInt,
    warmup: Warmup = 0,
    eta_min: Minimum = 0.0,
) -> LambdaLR:
    """From the full learning rate down to the minimum along a line; up to it along another with a warm-up.

    Steps after each training step.
    """
    total = epochs * steps_per_epoch
    return warm(optimizer, steps_of("warmup", warmup, total), total, line, eta_min)


@checked
def wsd(
    optimizer: Optimizer,
    epochs: PositiveInt,
    steps_per_epoch: PositiveInt,
    warmup: Warmup = 0.05,
    decay: Annotated[
        Steps, Field(description="How long the rate falls at the end: a fraction of the run, or a number of steps.")
    ] = 0.2,
    eta_min: Minimum = 0.0,
) -> LambdaLR:
    """Warm-up, stable, decay (MiniCPM, arXiv:2404.06395): up along a line, the full rate, then down to the minimum.

    It falls as 1 - sqrt(x), x from 0 to 1, the best shape in Hägele et al. 2024 (arXiv:2405.18392). Steps after each
    training step.
    """
    total = epochs * steps_per_epoch
    rising, falling = steps_of("warmup", warmup, total), steps_of("decay", decay, total)
    if rising + falling > total + 1:  # both may have been rounded up
        raise OptionError("decay", f"and warmup={warmup} are longer than the run of {total:,} steps together", decay)

    def shape(step: int, steps: int) -> float:
        begin = max(0, steps - falling)
        return 1.0 if step <= begin else 1 - math.sqrt((step - begin) / (steps - begin))

    return warm(optimizer, rising, total, shape, eta_min)


def half_cosine(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 after `steps`."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def line(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 after `steps`."""
    return 1 - step / steps


def warm(optimizer: Optimizer, rising: int, total: int, shape: Callable[[int, int], float], eta_min: float) -> LambdaLR:
    """`rising` steps up to the full rate, then from it (1) to `eta_min` (0) as `shape` says.

    Step t of the first has (t + 1) / `rising` of the full rate. `shape` is given the step after the warm-up and the
    number of steps until the end of the run; the minimum is reached just after the last one.
    """

    def factor(floor: float) -> Callable[[int], float]:
        def at(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return floor + (1 - floor) * shape(min(step, total) - rising, total - rising)

        return at  # a plain function: LambdaLR saves the attributes of other callables

    lowest(optimizer, eta_min)
    return LambdaLR(optimizer, [factor(eta_min / group["lr"] if eta_min else 0.0) for group in optimizer.param_groups])


def steps_of(name: str, value: int | float, total: int) -> int:
    """The steps that the option `name` means, fewer than the run's `total`. Raises OptionError for a number of more."""
    if isinstance(value, float):
        return min(round(value * total), total - 1)
    if value >= total and value:
        raise OptionError(name, f"must be less than the run's {total:,} steps", value)
    return value


def lowest(optimizer: Optimizer, eta_min: float) -> float:
    """`eta_min`. Raises OptionError if it is above the learning rate."""
    full = min(group["lr"] for group in optimizer.param_groups)
    if eta_min > full:
        raise OptionError("eta_min", f"must not be above the learning rate {full}", eta_min)
    return eta_min
