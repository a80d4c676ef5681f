"""The lesson's Keras Sequential models: same layers, parameter counts and initial weights as Keras.

    embedding or one-hot → [batch normalisation] → recurrent layers, dropout after each
    → [dense relu → dropout] → dense, read at every step (`TimeDistributed`) or after a window

SimpleRNN: h_t = f(W x_t + U h_{t-1} + b), f = relu or tanh, U orthogonal or the identity
LSTM: gates i, f, c, o with one bias, initially 1 for the forget gate; U orthogonal
Kernels are glorot-uniform, embeddings uniform in ±0.05, other biases 0; batch normalisation has
epsilon 0.001 and momentum 0.99.

Shapes: B batch, T time, E embedding (or vocabulary), H hidden.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from charlm.models.lesson.cells import Cell, LSTMCell, RNNCell, StackedCells
from charlm.models.lesson.loops import keras_init
from charlm.models.options import Activation, HiddenSize, Identity, Layers
from charlm.models.sequence import Sequence
from charlm.models.state import State, turn
from charlm.options import PositiveInt, Probability, checked


class _Keras(Sequence):
    """What the families share; see the module's docstring."""

    cell: ClassVar[type[Cell]]

    @checked
    def __init__(
        self,
        vocab_size: PositiveInt,
        embedding_size: Annotated[
            PositiveInt | None, Field(description="Size of a character's embedding; null: one-hot inputs.")
        ] = 42,
        hidden_size: HiddenSize = 256,
        layers: Layers = 1,
        batch_norm: Annotated[bool, Field(description="Normalise the inputs of the recurrent layer.")] = False,
        dropout: Annotated[
            Probability, Field(description="Probability of dropping a unit after each recurrent and the dense layer.")
        ] = 0.0,
        dense_size: Annotated[
            PositiveInt | None, Field(description="Units of a dense relu layer before the head; null: none.")
        ] = None,
        cell_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = None if embedding_size is None else nn.Embedding(vocab_size, embedding_size)
        inputs = embedding_size or vocab_size
        self.norm = nn.BatchNorm1d(inputs, eps=1e-3, momentum=0.01) if batch_norm else None
        self.recurrent = StackedCells(self.cell, inputs, hidden_size, layers, dropout, biases=1, **(cell_options or {}))
        self.dropout = nn.Dropout(dropout)
        self.dense = None if dense_size is None else nn.Linear(hidden_size, dense_size)
        self.head = nn.Linear(dense_size or hidden_size, vocab_size)
        keras_init(self)
        for cell in self.cells():
            nn.init.xavier_uniform_(cell.weight_ih)
            nn.init.orthogonal_(cell.weight_hh)
            nn.init.zeros_(cell.bias_ih)

    def cells(self) -> list[Cell]:
        """The cells of the layers, first to last."""
        return [part for part in self.recurrent.modules() if isinstance(part, Cell)]

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Inputs of the head (T, B, H) and the state after the last step."""
        x_TB = x_BT.t()
        if self.embedding is None:
            e_TBE = F.one_hot(x_TB, self.vocab_size).to(next(self.parameters()).dtype)
        else:
            e_TBE = self.embedding(x_TB)
        if self.norm is not None:
            e_TBE = self.normalise(e_TBE.flatten(0, 1)).view_as(e_TBE)  # over batch and time, as in Keras
        h_TBH, last = self.recurrent(e_TBE, turn(state))
        h_TBH = self.dropout(h_TBH)
        if self.dense is not None:
            h_TBH = self.dropout(torch.relu(self.dense(h_TBH)))
        return h_TBH, turn(last)

    def normalise(self, e_NE: Tensor) -> Tensor:
        """Batch normalisation; a single row has no variance and uses the running statistics."""
        assert self.norm is not None
        norm, training = self.norm, self.training and len(e_NE) > 1
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(e_NE, *statistics, norm.weight, norm.bias, training, norm.momentum or 0.0, norm.eps)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (B, layers, H)."""
        return self.zeros(batch_size, self.recurrent.num_layers, self.recurrent.hidden_size)


class SimpleRNN(_Keras):
    """Keras's fully connected recurrent layer."""

    cell = RNNCell

    @checked
    def __init__(
        self, vocab_size: int, activation: Activation = "relu", identity: Identity = True, **options: Any
    ) -> None:
        super().__init__(vocab_size, cell_options={"activation": activation}, **options)
        if identity:
            for cell in self.cells():
                nn.init.eye_(cell.weight_hh)


class LSTM(_Keras):
    """Keras's LSTM layer; its state is the pair (h, c)."""

    cell = LSTMCell

    @checked
    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        for cell in self.cells():
            forget = slice(self.recurrent.hidden_size, 2 * self.recurrent.hidden_size)
            nn.init.ones_(cell.bias_ih[forget])

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (h, c), each (B, layers, H)."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros
