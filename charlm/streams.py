"""Cut one long sequence of ids into batches.

Three ways to cut, one kind of batch:

* `Streams` ("wrinkle 2" of the lesson): the text is cut into `batch_size` equal contiguous streams
  that are stacked, and each batch is the next `bptt` columns. Row b of a batch goes on exactly where
  row b of the batch before ended, so a recurrent state may be carried over.
* `Windows`: every batch holds independent windows of the text, in random order when shuffled.
* `Mix`: streams of several texts side by side, each with its own rows of every batch.

`Batch.first` tells the model when the rows start afresh: on the first batch of an epoch of streams,
on every batch of windows, and for a mix on the rows whose text begins again. Nothing here knows of models, text or
Lightning.

Shapes: N ids, B rows, L columns in a stream, T time steps in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


def stack(ids_N: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Stack into streams for training: x and y of shape (B, L), views of `ids_N`.

    ``x = ids[:-1]`` and ``y = ids[1:]`` are stacked separately, so no target is lost at a seam. The
    last ``(N - 1) % batch_size`` targets are left out.
    """
    columns = (len(ids_N) - 1) // batch_size
    used = batch_size * columns
    return ids_N[:used].view(batch_size, columns), ids_N[1 : used + 1].view(batch_size, columns)


def stack_all(ids_N: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Stack into streams for evaluation: like `stack`, but every target is in.

    The end of the last rows is filled up with targets `IGNORE`.
    """
    targets = len(ids_N) - 1
    columns = -(-targets // batch_size)
    fill = ids_N.new_zeros(batch_size * columns - targets)
    x = torch.cat([ids_N[:-1], fill])
    y = torch.cat([ids_N[1:], torch.full_like(fill, IGNORE)])
    return x.view(batch_size, columns), y.view(batch_size, columns)


def edges(columns: int, bptt: int, jitter: int = 0, rng: torch.Generator | None = None) -> list[int]:
    """Where to cut `columns` into windows of `bptt`, the last one ragged: ``[0, bptt, …, columns]``.

    With `jitter` j every inner edge moves by a random whole number in [-j, j], so windows differ in
    length and their seams in place, while the number of windows stays the same.
    """
    inner = torch.arange(bptt, max(columns, bptt), bptt)
    if jitter:
        inner = inner + torch.randint(-jitter, jitter + 1, inner.shape, generator=rng)
        inner = inner.clamp(max=columns - 1)
    return [0, *inner.tolist(), columns]


def epoch_rng(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of their own for every (seed, epoch), so that any epoch can be made again."""
    # The constants of a Weyl sequence keep neighbouring seeds and epochs far apart.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) % 2**63)


class Streams:
    """An epoch over stacked streams, `bptt` columns at a time; every column is used once.

    Arguments: `x_BL`, `y_BL` as from `stack`; `jitter` as in `edges` (at most ``(bptt - 1) // 2``);
    `rng`, called when an epoch starts, gives the random numbers that move its edges.
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


class Windows:
    """An epoch over windows of `length` inputs and the `length` targets one to the right.

    Arguments: `ids_N`; `starts`, where each window begins (at most ``N - 1 - length``); `rng`, called
    when an epoch starts, gives the random numbers of its order (None: as in `starts`). The last batch may
    be smaller.
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
        # A view: row i is the window at i together with the one target after its end.
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


class Mix:
    """Streams of several texts side by side (fast.ai's MixIterator): rows of each in every batch.

    An epoch is one pass over the first text, from its beginning. The others go on from batch to batch and
    from epoch to epoch, and begin again, with a fresh state in their rows, after their own last window.
    Where windows of one batch differ in length (a text's last one may be shorter), the shorter is filled
    up with targets `IGNORE`.

    Arguments: `sources`, without jitter and all of one bptt; `before`, called when an epoch starts, gives
    the number of batches in all epochs before it, and with it every other text's place.
    """

    def __init__(self, sources: list[Streams], before: Callable[[], int]) -> None:
        self.sources, self.before = sources, before
        self.cuts = [list(pairwise(edges(source.x_BL.shape[1], source.bptt))) for source in sources]

    def __len__(self) -> int:
        return len(self.sources[0])

    def __iter__(self) -> Iterator[Batch]:
        before = self.before()
        for step in range(len(self)):
            main, *others = self.cuts
            yield self._batch([main[step], *(cuts[(before + step) % len(cuts)] for cuts in others)])

    def _batch(self, windows: list[tuple[int, int]]) -> Batch:
        length = max(end - start for start, end in windows)
        xs, ys, first, padded = [], [], [], 0
        for source, (start, end) in zip(self.sources, windows, strict=True):
            fill = length - (end - start)
            xs.append(F.pad(source.x_BL[:, start:end].long(), (0, fill)))
            ys.append(F.pad(source.y_BL[:, start:end].long(), (0, fill), value=IGNORE))
            first.append(torch.full((len(xs[-1]),), start == 0, device=source.x_BL.device))
            padded += fill * len(xs[-1])
        return Batch(torch.cat(xs), torch.cat(ys), torch.cat(first), padded)


def window_starts(ids: int, length: int, stride: int) -> Tensor:
    """Where windows of `length` inputs begin in a text of `ids` characters: 0, stride, 2·stride, …"""
    return torch.arange(0, max(ids - length, 0), stride)
