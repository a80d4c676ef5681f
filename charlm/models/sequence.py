"""Networks with features after every character and a head that reads them.

Shapes: B batch, T time, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from charlm.models.network import Network, Output
from charlm.models.state import State


class Sequence(Network):
    """A network that computes features step by step and predicts from them.

    Subclasses define `features`, `initial_state` and ``head``.
    """

    head: Callable[[Tensor], Tensor]

    @abstractmethod
    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Features (T, B, H) after each input, time first, and the state after the last."""

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Logits after each input, the state, and the features."""
        h_TBH, state = self.features(x_BT, self.initial_state(len(x_BT)) if state is None else state)
        return Output(self.head(h_TBH).transpose(0, 1), state, h_TBH.transpose(0, 1))

    def zeros(self, *shape: int) -> Tensor:
        """Zeros with the dtype and device of the parameters."""
        parameter = next(self.parameters())
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
