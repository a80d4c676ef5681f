"""What the families share: features after every character and a head, read at every step or after a window.

Shapes: B batch, T time, N the window's length, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from charlm.models.checks import check_sizes
from charlm.models.network import Network
from charlm.models.state import State


class Sequence(Network):
    """A network that computes features step by step and predicts from them.

    With ``context=None`` there is an output at every step, and the state is that of `features`. With
    ``context=N`` there is one output, after the last N characters, each time computed anew; the state is
    then the window itself: int64 (1, B, N) of ids + 1, right-aligned, 0 where no character has been yet.

    A family defines `features`, `start` and ``head``.
    """

    head: Callable[[Tensor], Tensor]

    def __init__(self, context: int | None = None) -> None:
        super().__init__()
        if context is not None:
            check_sizes(context=context)
        self.context = context

    @abstractmethod
    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Features (T, B, H) after each input, time first, and the state after the last."""

    @abstractmethod
    def start(self, batch_size: int) -> State:
        """The state of `features` before the first character."""

    def forward(self, x_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, T, V), or (B, 1, V) after a window, and the state."""
        if self.context is None:
            h_TBH, state = self.features(x_BT, self.start(len(x_BT)) if state is None else state)
            return self.head(h_TBH).transpose(0, 1), state
        seen_BT = self._seen(x_BT, state)[:, -self.context :]
        full = x_BT.shape[1] >= self.context
        return self.head(self._after(seen_BT, full)).transpose(0, 1), seen_BT.unsqueeze(0)

    def every_step(self, x_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, T, V) after each input; those of a window family come from T windows."""
        if self.context is None:
            return self(x_BT, state)
        seen_BT = self._seen(x_BT, state)
        windows_BTN = seen_BT.unfold(1, self.context, 1)[:, 1:]
        logits = self.head(self._after(windows_BTN.flatten(0, 1)))
        return logits.view(*x_BT.shape, -1), seen_BT[:, -self.context :].unsqueeze(0)

    def initial_state(self, batch_size: int) -> State:
        """What `start` says, or an empty window."""
        if self.context is None:
            return self.start(batch_size)
        device = next(self.parameters()).device
        return torch.zeros(1, batch_size, self.context, dtype=torch.int64, device=device)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the parameters' type, on their device."""
        parameter = next(self.parameters())
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)

    def _seen(self, x_BT: Tensor, state: State | None) -> Tensor:
        window = self.initial_state(len(x_BT)) if state is None else state
        assert isinstance(window, Tensor)
        return torch.cat([window[0], x_BT + 1], 1)

    def _after(self, window_BN: Tensor, full: bool = False) -> Tensor:
        """Features (1, B, H) after right-aligned windows; `full` when none has an empty place."""
        if full:
            return self.features(window_BN - 1, self.start(len(window_BN)))[0][-1:]
        lengths = (window_BN > 0).sum(1)
        rows, found = [], []
        for length in lengths.unique().tolist():  # usually one
            chosen = (lengths == length).nonzero()[:, 0]
            rows.append(chosen)
            found.append(self._after(window_BN[chosen, window_BN.shape[1] - length :], full=True))
        return torch.cat(found, 1)[:, torch.cat(rows).argsort()]
