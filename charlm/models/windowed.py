"""Predicting only after a window of characters.

Shapes: B batch, T time, N the window's length, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from charlm.models.network import Network, Output
from charlm.models.options import Window
from charlm.models.sequence import Sequence
from charlm.models.state import State
from charlm.options import checked


class Windowed(Network):
    """Predicts from the last `window` characters only: `network` reads them from its initial state each time.

    The state is the window itself: int64 (B, N), ids + 1, right-aligned, 0 where there is no character yet.
    """

    window: int

    @checked
    def __init__(self, network: Sequence, window: Window) -> None:
        super().__init__()
        self.network, self.window = network, window

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """The head of the wrapped network."""
        return self.network.head

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """One output, after the last input."""
        window_BN = self._seen(x_BT, state)[:, -self.window :]
        h_1BH = self._after(window_BN, full=x_BT.shape[1] >= self.window)
        return Output(self.head(h_1BH).transpose(0, 1), window_BN, h_1BH.transpose(0, 1))

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """An output after each input, each from its own window."""
        seen_BT = self._seen(x_BT, state)
        windows_BTN = seen_BT.unfold(1, self.window, 1)[:, 1:]
        h_1NH = self._after(windows_BTN.flatten(0, 1))
        logits, hidden = (part.view(*x_BT.shape, -1) for part in (self.head(h_1NH), h_1NH))
        return Output(logits, seen_BT[:, -self.window :], hidden)

    def initial_state(self, batch_size: int) -> Tensor:
        """An empty window."""
        device = next(self.parameters()).device
        return torch.zeros(batch_size, self.window, dtype=torch.int64, device=device)

    def parameter_group(self, name: str) -> str:
        """As in the wrapped network."""
        return self.network.parameter_group(name.removeprefix("network."))

    def _seen(self, x_BT: Tensor, state: State | None) -> Tensor:
        window_BN = self.initial_state(len(x_BT)) if state is None else state
        assert isinstance(window_BN, Tensor)
        return torch.cat([window_BN, x_BT + 1], 1)

    def _after(self, window_BN: Tensor, full: bool = False) -> Tensor:
        """Features (1, B, H) after right-aligned windows; `full` if none has an empty place."""
        if full:
            return self.network.features(window_BN - 1, self.network.initial_state(len(window_BN)))[0][-1:]
        lengths = (window_BN > 0).sum(1)
        rows, found = [], []
        for length in lengths.unique().tolist():  # usually only one
            chosen = (lengths == length).nonzero()[:, 0]
            rows.append(chosen)
            found.append(self._after(window_BN[chosen, window_BN.shape[1] - length :], full=True))
        return torch.cat(found, 1)[:, torch.cat(rows).argsort()]
