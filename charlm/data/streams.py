"""Contiguous streams of equal length, stacked as the rows of a batch ("wrinkle 2" of the lesson).

Each batch is the next `bptt` columns: row b continues where row b of the previous batch ended, so that the recurrent
state can be carried over.

Shapes: N ids, B rows, L columns in a stream, T time steps in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from charlm.data.batch import IGNORE, Batch


def stack(ids_N: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Streams for training: x and y of shape (B, L), views of `ids_N`.

    ``x = ids[:-1]`` and ``y = ids[1:]`` are stacked separately, so that no target is lost between rows. The last
    ``(N - 1) % batch_size`` targets are dropped.
    """
    columns = (len(ids_N) - 1) // batch_size
    used = batch_size * columns
    return ids_N[:used].view(batch_size, columns), ids_N[1 : used + 1].view(batch_size, columns)


def stack_all(ids_N: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Streams for evaluation: like `stack`, but with every target; the end is padded with targets `IGNORE`."""
    targets = len(ids_N) - 1
    columns = -(-targets // batch_size)
    fill = ids_N.new_zeros(batch_size * columns - targets)
    x = torch.cat([ids_N[:-1], fill])
    y = torch.cat([ids_N[1:], torch.full_like(fill, IGNORE)])
    return x.view(batch_size, columns), y.view(batch_size, columns)


def edges(columns: int, bptt: int, jitter: int = 0, rng: torch.Generator | None = None) -> list[int]:
    """Where to cut `columns` into windows of `bptt`, the last one ragged: ``[0, bptt, …, columns]``.

    `jitter` j moves every inner edge by a random integer in [-j, j]; the number of windows stays the same.
    """
    inner = torch.arange(bptt, max(columns, bptt), bptt)
    if jitter:
        inner = inner + torch.randint(-jitter, jitter + 1, inner.shape, generator=rng)
        inner = inner.clamp(max=columns - 1)
    return [0, *inner.tolist(), columns]


def epoch_rng(seed: int, epoch: int) -> torch.Generator:
    """A generator for each (seed, epoch), so that any epoch can be reproduced on its own."""
    # The constants of a Weyl sequence keep neighbouring seeds and epochs far apart.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) % 2**63)


class Streams:
    """One epoch of stacked streams, `bptt` columns at a time.

    `x_BL` and `y_BL` are from `stack` or `stack_all`, `jitter` is as in `edges` (at most ``(bptt - 1) // 2``). `rng` is
    called at the start of an epoch and returns the generator of its jitter.
    """

    def __init__(
        self,
        x_BL: Tensor,
        y_BL: Tensor,
        bptt: int,
        *,
        jitter: int = 0,
        rng: Callable[[], torch.Generator] | None = None,
    ) -> None:
        self.x_BL, self.y_BL, self.bptt, self.jitter, self.rng = x_BL, y_BL, bptt, jitter, rng

    def __len__(self) -> int:
        return -(-self.x_BL.shape[1] // self.bptt)

    def __iter__(self) -> Iterator[Batch]:
        cuts = edges(self.x_BL.shape[1], self.bptt, self.jitter, self.rng() if self.rng else None)
        for start, end in pairwise(cuts):
            yield Batch(self.x_BL[:, start:end].long(), self.y_BL[:, start:end].long(), start == 0)
