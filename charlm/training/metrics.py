"""Exact means over characters."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from charlm.training.ranks import add_up, several


class MeanPerCharacter(Metric):
    """A float64 sum over an int64 count: exact, however the characters were cut into batches."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # which would wait for ranks that do not compute now: see `add_up`
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor | float, count: Tensor | int) -> None:
        """Add the sum over `count` characters, without waiting for a GPU."""
        # Not in place: that fails for a state that was reset under inference mode (`trainer.validate`).
        # Cast to double each time: `precision=bf16-true` turns the state into bfloat16 together with the weights.
        self.total = self.total.double() + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        """The mean in float64; NaN if nothing was added."""
        return self.total / self.count

    def add_up(self) -> None:
        """Add the sums of all ranks, which call this together."""
        if several():
            self.total, self.count = add_up(self.total.double()), add_up(self.count)

    def sum_and_count(self) -> tuple[float, int]:
        """Plain values for a checkpoint."""
        return self.total.item(), int(self.count)

    def restore(self, total: float, count: int) -> None:
        """Continue from the values of `sum_and_count`."""
        self.reset()
        self.update(total, count)
