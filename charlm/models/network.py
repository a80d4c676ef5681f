"""The contract between network families and the code that uses them.

A new family is one file in this package, with a class that satisfies the contract of `Network` (most easily as a
subclass of `charlm.models.sequence.Sequence`), and one yaml in ``conf/model/``.

Shapes: B batch, T time, H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from charlm.models.state import State


class Output(NamedTuple):
    """The output of a network."""

    logits: Tensor  # (B, T, V), or (B, 1, V) if it predicts only after a window
    state: State  # after the last input
    hidden: Tensor  # (B, T, H) or (B, 1, H): what the head reads


class Network(nn.Module):
    """The contract of every family. Its constructor takes ``vocab_size`` and plain values.

    - A text read in chunks, with the state carried over, gives the same logits, state and gradients as the whole text,
      from any initial state.
    - Rows are independent (in evaluation mode), and no output depends on a later character.
    - The batch is dimension 0 of every tensor, including the state's.
    - ``head(hidden)`` gives the logits. Every parameter belongs to a part (`parameter_group`) and receives a gradient.
    - The constructor may run on the meta device, where tensors have no values.

    `window` is the number of characters that a prediction depends on, or None if there is one after every character.
    """

    window: int | None = None
    built_with: tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of the constructor

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Remember the arguments, so that a checkpoint can say how to build the network again."""
        network = super().__new__(cls)
        object.__setattr__(network, "built_with", (arguments, options))
        return network

    @abstractmethod
    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Read int64 ids from `state`; None means `initial_state`."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first character."""

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Like `forward`, but always with an output after each input."""
        output: Output = self(x_BT, state)
        return output

    def parameter_group(self, name: str) -> str:
        """The part of the network that a parameter belongs to: "embedding", "recurrent" or "head"."""
        first = name.split(".")[0]
        return first if first in ("embedding", "head") else "recurrent"
