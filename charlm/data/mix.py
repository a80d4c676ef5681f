"""Batches with rows from several texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from charlm.data.batch import IGNORE, Batch
from charlm.data.streams import Streams, edges


class Mix:
    """Streams of several texts, each with its own rows in every batch (fast.ai's MixIterator).

    An epoch is one pass over the first text. The others continue from epoch to epoch and start over, with a fresh state
    in their rows, when they end. The last window of a text may be shorter than those of the others in its batch; it is
    padded with targets `IGNORE`.

    `sources` have no jitter and the same bptt. `before` is called at the start of an epoch and returns the number of
    batches in all earlier epochs, which determines where in the other texts the epoch starts.
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
