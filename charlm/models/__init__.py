"""Network families: plain `nn.Module`s that know nothing of Lightning, Hydra or text.

A new family is one file here, with a class that keeps the contract of `Network`, and one yaml in
``conf/model/``.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from charlm.state import State


class Network(nn.Module):
    """The contract that every family keeps; its constructor takes ``vocab_size`` and plain values.

    Feeding a text in pieces with the state carried gives the same logits as feeding it whole, rows do
    not influence one another, and no output depends on a later character.

    `context` is how many characters a prediction can depend on, or None when that is unbounded.
    """

    context: int | None = None

    @abstractmethod
    def forward(self, x_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits after int64 inputs of shape (batch, time), and the state after the last of them.

        Logits are (batch, time, vocab), or (batch, 1, vocab) from families that predict only after a
        window. ``state=None`` means `initial_state`.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first character: tensors whose dimension 1 is the batch."""
