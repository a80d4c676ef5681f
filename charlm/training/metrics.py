"""Exact means over characters."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanPerCharacter(Metric):
    """A sum in float64 over a count in int64: exact however the characters were cut into batches."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor | float, count: Tensor | int) -> None:
        """Add the sum over `count` characters. No value is read back, so a GPU is not waited for."""
        # Not in place: a state that was reset under inference mode (`trainer.validate`) refuses that.
        # Doubled anew, because `precision=bf16-true` would turn the state into bfloat16 with the weights.
        self.total = self.total.double() + total
        self.count = self.count + count

    def parts(self) -> tuple[float, int]:
        """Sum and count, for a checkpoint."""
        return self.total.item(), int(self.count)

    def restore(self, total: float, count: int) -> None:
        """Take back what `parts` gave."""
        self.reset()
        self.update(total, count)

    def compute(self) -> Tensor:
        """The mean, float64; NaN when nothing was added."""
        return self.total / self.count
