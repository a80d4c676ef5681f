"""Several networks as one, which predicts the mean of their probabilities.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from charlm.models.network import Network, Output
from charlm.models.state import State


class Ensemble(Network):
    """The mean of the members' probabilities, as in a snapshot ensemble (Huang et al. 2017, arXiv:1704.00109).

    Its logits are the logarithms of these means, its state the tuple of the members' states, and `hidden` their hidden
    features side by side. Members predict at the same positions: raises ValueError for different windows.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        if len({member.window for member in members}) != 1:
            raise ValueError("all or none must predict after a window, of the same length")
        self.members, self.window = nn.ModuleList(members), members[0].window
        self._sizes: list[int] = []  # of the members' hidden features, known after the first forward

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """The logarithms of the mean probabilities."""
        return self._mean([member(x_BT, part) for member, part in self._with(state)])

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """The same after each input."""
        return self._mean([member.at_every_step(x_BT, part) for member, part in self._with(state)])

    def initial_state(self, batch_size: int) -> State:
        """The members' initial states."""
        return tuple(member.initial_state(batch_size) for member in self._networks)

    def head(self, hidden: Tensor) -> Tensor:
        """The logits of `hidden`, (…, V)."""
        parts = zip(self._networks, hidden.split(self._sizes, -1), strict=True)
        heads: list[tuple[Any, Tensor]] = [(m.head, h.to(next(m.parameters()).dtype)) for m, h in parts]
        return mean_logits([head(h) for head, h in heads])

    @property
    def _networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]

    def _with(self, state: State | None) -> list[tuple[Network, State | None]]:
        parts: Sequence[State | None] = [None] * len(self.members) if state is None else list(state)
        return list(zip(self._networks, parts, strict=True))

    def _mean(self, outputs: Sequence[Output]) -> Output:
        self._sizes = [output.hidden.shape[-1] for output in outputs]
        hidden = torch.cat([output.hidden for output in outputs], -1)
        return Output(mean_logits([output.logits for output in outputs]), tuple(o.state for o in outputs), hidden)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of softmax(logits), in float32 or the members' own higher precision."""
    dtype = functools.reduce(torch.promote_types, [part.dtype for part in logits], torch.float32)
    together = torch.stack([part.log_softmax(-1, dtype=dtype) for part in logits])
    return together.logsumexp(0) - math.log(len(logits))
