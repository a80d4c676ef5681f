"""`Batch`: the inputs and targets of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Generator, Tensor

IGNORE = -100
"""Target of a padded position, which `torch.nn.functional.cross_entropy` ignores by default."""

EpochRng = Callable[[], Generator]
"""Called at the start of an epoch; returns the generator of its random numbers."""


class Batch(NamedTuple):
    """Inputs `x` and targets `y`, int64 (B, T).

    `first`: whether the rows start without an earlier state, for all of them or for each: bool (B). `padded`: how many
    targets of a training batch are `IGNORE`. `weights`: by what to multiply the mean loss over targets, and over rows,
    of one process's part of a batch, so that the average over processes is the mean over the whole batch.
    """

    x: Tensor
    y: Tensor
    first: bool | Tensor
    padded: int = 0
    weights: tuple[float, float] = (1.0, 1.0)
