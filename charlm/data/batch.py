"""`Batch`: the inputs and targets of one step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IGNORE = -100
"""Target of a padded position, which `torch.nn.functional.cross_entropy` ignores by default."""


class Batch(NamedTuple):
    """Inputs `x` and targets `y`, int64 (B, T).

    `first`: whether the rows start without an earlier state, for all of them or for each: bool (B). `padded`: how many
    targets of a training batch are `IGNORE`.
    """

    x: Tensor
    y: Tensor
    first: bool | Tensor
    padded: int = 0
