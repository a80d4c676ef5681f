"""The rows of each batch that one of several processes, a rank, trains on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from charlm.data.batch import IGNORE, Batch
from charlm.data.mix import Mix
from charlm.data.streams import Streams
from charlm.data.windows import Windows


def share(rows: int, rank: int, world: int) -> slice:
    """Which of `rows` belong to `rank` of `world`: contiguous; all ranks have equally many, give or take one."""
    return slice(rank * rows // world, (rank + 1) * rows // world)


class Share:
    """The part of one rank of the batches in `whole`.

    Every rank has the same number of batches, because ranks wait for each other at each. Where a batch has fewer rows
    than there are ranks, some get a row that does not count: in training it has the weight 0, for `evaluation` its
    targets are `IGNORE`.
    """

    def __init__(self, whole: Streams | Windows | Mix, rank: int, world: int, *, evaluation: bool = False) -> None:
        self.whole, self.rank, self.world, self.evaluation = whole, rank, world, evaluation

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.whole:
            yield self._part(batch)

    def _part(self, batch: Batch) -> Batch:
        rows = share(len(batch.x), self.rank, self.world)
        nothing = rows.start == rows.stop
        if nothing:
            rows = slice(0, 1)
        x, y, first = batch.x[rows], batch.y[rows], batch.first
        if isinstance(first, Tensor):
            first = first[rows]
        if self.evaluation:
            return Batch(x, torch.full_like(y, IGNORE) if nothing else y, first)
        padded = int((y == IGNORE).sum()) if batch.padded else 0
        if nothing:
            return Batch(x, y, first, padded, (0.0, 0.0))
        by_target = self.world * (y.numel() - padded) / (batch.y.numel() - batch.padded)
        return Batch(x, y, first, padded, (by_target, self.world * len(x) / len(batch.x)))
