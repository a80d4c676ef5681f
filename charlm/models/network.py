"""Network families: plain `nn.Module`s that know nothing of Lightning, Hydra or text.

A new family is one file here, with a class that keeps the contract of `Network` (most easily as a
`charlm.models.sequence.Sequence`), and one yaml in ``conf/model/``.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from charlm.models.state import State


class Network(nn.Module):
    """The contract that every family keeps; its constructor takes ``vocab_size`` and plain values.

    Feeding a text in pieces with the state carried gives the same logits as feeding it whole, rows do
    not influence one another (in evaluation mode), and no output depends on a later character.

    `context` is how many characters a prediction can depend on, or None when that is unbounded.
    Parameters are called ``embedding…`` and ``head…`` where they belong to these parts (see `part`).
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

    def every_step(self, x_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Like `forward`, but with logits (batch, time, vocab) after each input, whatever the family."""
        return self(x_BT, state)

    def part(self, parameter: str) -> str:
        """Which part of the network a parameter belongs to: "embedding", "recurrent" or "head"."""
        first = parameter.split(".")[0]
        return first if first in ("embedding", "head") else "recurrent"
