"""What the families share: features after every character and a head, read at every step or after a window.

Shapes: B batch, T time, N the window's length, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from charlm.models import Network
from charlm.state import State


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


# A file cannot ask for more; the other sizes show in its weights.
MOST = {"layers": 1_000, "context": 10_000}


def check_sizes(**sizes: object) -> None:
    """Raise ValueError for a size that is not a whole number of at least 1, and at most as in `MOST`."""
    for name, size in sizes.items():
        if isinstance(size, int) and size > MOST.get(name, size):
            raise ValueError(f"{name} must be at most {MOST[name]:,}, not {size:,}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")


def check_probabilities(**probabilities: object) -> None:
    """Raise ValueError for a probability outside [0, 1)."""
    for name, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise ValueError(f"{name} must be a probability of at least 0 and below 1, not {p!r}")


def check_choice(choices: tuple[str, ...], **values: object) -> None:
    """Raise ValueError for a value that is not one of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_flags(**flags: object) -> None:
    """Raise ValueError for a flag that is neither true nor false."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name} must be true or false, not {flag!r}")
