"""The lesson's first networks: three linear layers and a loop over the characters.

Every arrow of one colour in the lesson's diagrams is one layer: ``input`` (characters to hidden, green),
``hidden`` (hidden to hidden, orange) and ``head`` (hidden to output, blue). e_t is the embedding of
character t, h_t the state after it.

CharLoop, the PyTorch form (Char3Model with context 3, CharLoopModel with context 8), h_0 = 0:
    h_t = tanh(W_h (h_{t-1} + relu(W_in e_t + b_in)) + b_h)
CharLoopConcat (CharLoopConcatModel), h_0 = 0:
    h_t = tanh(W_h relu(W_in [h_{t-1}; e_t] + b_in) + b_h)
KerasLoop, the Keras functional form, with f = tanh or relu:
    h_t = relu(W_in e_t + b_in) + f(W_h h_{t-1} + b_h)
    after a window (context N): h_1 = relu(W_in e_1 + b_in)
    with an output at every step (no context): h_0 = relu(W_in 0 + b_in), "fed by a vector of zeros"

Shapes: B batch, T time, E embedding, H hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from charlm.models.checks import check_choice, check_flags, check_sizes
from charlm.models.ops.scan import scan
from charlm.models.sequence import Sequence
from charlm.models.state import State


class _Loop(Sequence):
    """What the three share. The state is h, (1, B, H).

    Arguments: sizes in units; `context`, the window's length, or None for an output at every step;
    `own_embeddings`, whether each of the window's places has an embedding of its own, as the lesson's
    `embedding_input` gives it (needs a context). Raises ValueError for sizes below 1.
    """

    concatenates: ClassVar[bool] = False  # the state to the input

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 42,
        hidden_size: int = 256,
        context: int | None = 8,
        own_embeddings: bool = False,
    ) -> None:
        super().__init__(context)
        check_sizes(vocab_size=vocab_size, embedding_size=embedding_size, hidden_size=hidden_size)
        check_flags(own_embeddings=own_embeddings)
        if own_embeddings and context is None:
            raise ValueError("own_embeddings needs a context: there is one embedding for each of its places")
        self.hidden_size, self.offset = hidden_size, vocab_size if own_embeddings else 0
        tables = context if own_embeddings and context else 1
        self.embedding = nn.Embedding(tables * vocab_size, embedding_size)
        self.input = nn.Linear(embedding_size + (hidden_size if self.concatenates else 0), hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size)

    @abstractmethod
    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""

    def embed(self, x_BT: Tensor) -> tuple[Tensor, ...]:
        """Embeddings, (B, E) for each of T; a window shorter than the context takes the last places."""
        if self.offset and self.context:
            x_BT = x_BT + self.offset * torch.arange(self.context - x_BT.shape[1], self.context, device=x_BT.device)
        return self.embedding(x_BT).unbind(1)

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The state after each input, (T, B, H), and the last of them."""
        assert isinstance(state, Tensor)
        states = scan(self.step, state[0], self.embed(x_BT))
        return torch.stack(states), states[-1].unsqueeze(0)

    def start(self, batch_size: int) -> State:
        """Zeros, (1, B, H)."""
        return self.zeros(1, batch_size, self.hidden_size)


class CharLoop(_Loop):
    """The input is added to the state."""

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.tanh(self.hidden(h_BH + torch.relu(self.input(e_BE))))


class CharLoopConcat(_Loop):
    """The input is concatenated to the state, not added: the two are different kinds of information."""

    concatenates = True

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.tanh(self.hidden(torch.relu(self.input(torch.cat([h_BH, e_BE], 1)))))


class KerasLoop(_Loop):
    """The lesson's Keras functional models, with Keras's initial weights.

    Further arguments: `activation` of the hidden path, "tanh" or "relu"; `identity`, whether W_h starts
    as the identity.
    """

    def __init__(self, *sizes: Any, activation: str = "relu", identity: bool = False, **options: Any) -> None:
        super().__init__(*sizes, **options)
        check_choice(("tanh", "relu"), activation=activation)
        check_flags(identity=identity)
        self.activation = torch.tanh if activation == "tanh" else torch.relu
        keras_init(self)
        if identity:
            nn.init.eye_(self.hidden.weight)

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.relu(self.input(e_BE)) + self.activation(self.hidden(h_BH))

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The state after each input, (T, B, H), and the last of them."""
        if self.context is None:
            return super().features(x_BT, state)
        first, *rest = self.embed(x_BT)
        begun = torch.relu(self.input(first))  # nothing comes before a window
        states = [begun, *scan(self.step, begun, rest)]
        return torch.stack(states), states[-1].unsqueeze(0)

    def start(self, batch_size: int) -> State:
        """What a vector of zeros makes of the input layer, (1, B, H)."""
        return torch.relu(self.input.bias).expand(1, batch_size, -1)


def keras_init(module: nn.Module) -> None:
    """Keras's initial weights: linear layers glorot-uniform with zero bias, embeddings uniform in ±0.05."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -0.05, 0.05)
