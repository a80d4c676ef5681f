"""`Batch`: what a model reads in one step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IGNORE = -100
"""Target of a padded position; `torch.nn.functional.cross_entropy` leaves it out by default."""


class Batch(NamedTuple):
    """Inputs `x` and targets `y`, int64 (B, T).

    `first` is True when no row continues an earlier batch, False when all do, or says so of each row: bool
    (B). `padded` is how many targets of a training batch are `IGNORE`.
    """

    x: Tensor
    y: Tensor
    first: bool | Tensor
    padded: int = 0
