"""Independent windows of a text, in order or shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from charlm.data.batch import Batch


class Windows:
    """One epoch of windows: `length` inputs and the `length` targets one to their right.

    `starts` holds the position of each window, at most ``N - 1 - length``. `rng` is called at the start of an epoch and
    returns the generator that shuffles them; None keeps their order. The last batch may be smaller.
    """

    def __init__(
        self,
        ids_N: Tensor,
        starts: Tensor,
        length: int,
        batch_size: int,
        *,
        rng: Callable[[], torch.Generator] | None = None,
    ) -> None:
        # A view: row i is the window at i, with the one target after its end.
        self.rows = ids_N.unfold(0, length + 1, 1)
        self.starts, self.batch_size, self.rng = starts, batch_size, rng

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        starts = self.starts
        if self.rng:
            order = torch.randperm(len(starts), generator=self.rng())
            starts = starts[order.to(starts.device)]
        for chosen in starts.split(self.batch_size):
            rows = self.rows[chosen].long()
            yield Batch(rows[:, :-1], rows[:, 1:], True)


def window_starts(ids: int, length: int, stride: int) -> Tensor:
    """The starts of all windows of `length` inputs in a text of `ids` characters: 0, stride, 2·stride, …"""
    return torch.arange(0, max(ids - length, 0), stride)
