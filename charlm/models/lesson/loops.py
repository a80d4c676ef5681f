"""The lesson's first networks: three linear layers and a loop over the characters.

In the lesson's diagrams, all arrows of one colour are one layer: ``input`` (characters to hidden, green),
``hidden`` (hidden to hidden, orange) and ``head`` (hidden to output, blue). e_t is the embedding of
character t, h_t the state after it.

CharLoop, the PyTorch form (Char3Model with a window of 3, CharLoopModel of 8), h_0 = 0:
    h_t = tanh(W_h (h_{t-1} + relu(W_in e_t + b_in)) + b_h)
CharLoopConcat (CharLoopConcatModel), h_0 = 0:
    h_t = tanh(W_h relu(W_in [h_{t-1}; e_t] + b_in) + b_h)
KerasLoop, the Keras functional form, with f = tanh or relu:
    h_t = relu(W_in e_t + b_in) + f(W_h h_{t-1} + b_h)
    in a window of N places: h_1 = relu(W_in e_1 + b_in)
    with an output at every step: h_0 = relu(W_in 0 + b_in), "fed by a vector of zeros"

Shapes: B batch, T time, E embedding, H hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from charlm.errors import OptionError
from charlm.models.ops.scan import scan
from charlm.models.options import Activation, EmbeddingSize, HiddenSize, Identity, Window
from charlm.models.sequence import Sequence
from charlm.models.state import State
from charlm.options import PositiveInt, checked


class _Loop(Sequence):
    """What the three share. The state is h, (B, H). `tables` is the number of embedding tables."""

    concatenates: ClassVar[bool] = False  # the state to the input

    @checked
    def __init__(
        self,
        vocab_size: PositiveInt,
        embedding_size: EmbeddingSize = 42,
        hidden_size: HiddenSize = 256,
        tables: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(tables * vocab_size, embedding_size)
        self.input = nn.Linear(embedding_size + (hidden_size if self.concatenates else 0), hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size)

    @abstractmethod
    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""

    def embed(self, x_BT: Tensor) -> tuple[Tensor, ...]:
        """Embeddings, T times (B, E)."""
        return self.embedding(x_BT).unbind(1)

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The states after each input, (T, B, H), and the last state."""
        assert isinstance(state, Tensor)
        states = scan(self.step, state, self.embed(x_BT))
        return torch.stack(states), states[-1]

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (B, H)."""
        return self.zeros(batch_size, self.hidden_size)


class CharLoop(_Loop):
    """The input is added to the state."""

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.tanh(self.hidden(h_BH + torch.relu(self.input(e_BE))))


class CharLoopConcat(_Loop):
    """The input is concatenated to the state, not added, because they carry different kinds of information."""

    concatenates = True

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.tanh(self.hidden(torch.relu(self.input(torch.cat([h_BH, e_BE], 1)))))


class KerasLoop(_Loop):
    """The lesson's Keras functional models, with Keras's initial weights."""

    @checked
    def __init__(
        self,
        vocab_size: PositiveInt,
        embedding_size: EmbeddingSize = 42,
        hidden_size: HiddenSize = 256,
        places: Annotated[
            Window | None, Field(description="Length of the window (model.window); null: an output at every step.")
        ] = None,
        own_embeddings: Annotated[
            bool, Field(description="A separate embedding for each position in the window (as in the lesson).")
        ] = False,
        activation: Activation = "relu",
        identity: Identity = False,
    ) -> None:
        if own_embeddings and places is None:
            raise OptionError("own_embeddings", "needs a window: there is one embedding for each position", True)
        tables = places if own_embeddings and places else 1
        super().__init__(vocab_size, embedding_size, hidden_size, tables)
        self.places, self.offset = places, vocab_size if own_embeddings else 0
        self.activation = torch.tanh if activation == "tanh" else torch.relu
        keras_init(self)
        if identity:
            nn.init.eye_(self.hidden.weight)

    def step(self, h_BH: Tensor, e_BE: Tensor) -> Tensor:
        """The state after one more character, (B, H)."""
        return torch.relu(self.input(e_BE)) + self.activation(self.hidden(h_BH))

    def embed(self, x_BT: Tensor) -> tuple[Tensor, ...]:
        """Embeddings, T times (B, E); an incomplete window uses the last places."""
        if self.offset and self.places:
            x_BT = x_BT + self.offset * torch.arange(self.places - x_BT.shape[1], self.places, device=x_BT.device)
        return super().embed(x_BT)

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The states after each input, (T, B, H), and the last state."""
        if self.places is None:
            return super().features(x_BT, state)
        first, *rest = self.embed(x_BT)
        begun = torch.relu(self.input(first))  # nothing precedes a window
        states = [begun, *scan(self.step, begun, rest)]
        return torch.stack(states), states[-1]

    def initial_state(self, batch_size: int) -> State:
        """The input layer's response to a vector of zeros, (B, H)."""
        return torch.relu(self.input.bias).expand(batch_size, -1)


def keras_init(module: nn.Module) -> None:
    """Keras's initial weights: linear layers glorot-uniform with zero bias, embeddings uniform in ±0.05."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -0.05, 0.05)
