"""Embedding → built-in recurrent layers → linear head, with an output at every step.

RNN (Elman 1990, "Finding structure in time"):
    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

GRU (Cho et al. 2014, arXiv:1406.1078, with PyTorch's gate order r, z, n):
    r_t = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
    z_t = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
    n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_{t-1} + b_hn))
    h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}

LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000; PyTorch's gate order i, f, g, o):
    i_t, f_t, o_t = σ(W_i· x_t + b_i· + W_h· h_{t-1} + b_h·);  g_t = tanh(likewise)
    c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t;  h_t = o_t ⊙ tanh(c_t)

Shapes: B batch, T time, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from charlm.models import Network
from charlm.state import State


class _Recurrent(Network):
    """What the three families share; see the module's docstring for the equations.

    Arguments: sizes in units; `layers`, stacked recurrent layers; `dropout`, the probability of
    dropping a unit between layers; `output_dropout`, likewise before the head.
    Raises ValueError for sizes below 1 and probabilities outside [0, 1).
    """

    layer: ClassVar[type[nn.RNN | nn.GRU | nn.LSTM]]

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 42,
        hidden_size: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = dict(vocab_size=vocab_size, embedding_size=embedding_size, hidden_size=hidden_size, layers=layers)
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
        for name, p in dict(dropout=dropout, output_dropout=output_dropout).items():
            if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
                raise ValueError(f"{name} must be a probability of at least 0 and below 1, not {p!r}")
        if dropout and layers == 1:
            raise ValueError("dropout acts between layers: use two or more layers, or output_dropout")
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.recurrent = self.layer(embedding_size, hidden_size, layers, dropout=dropout)
        self.dropout = nn.Dropout(output_dropout)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, x_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (B, T, V) and the state after the last step."""
        e_TBE = self.embedding(x_BT.t())  # time first is the layout the recurrent kernels work in
        h_TBH, last = self.recurrent(e_TBE, state)
        return self.head(self.dropout(h_TBH)).transpose(0, 1), last

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (layers, B, H)."""
        weight = self.head.weight
        return torch.zeros(
            self.recurrent.num_layers,
            batch_size,
            self.recurrent.hidden_size,
            dtype=weight.dtype,
            device=weight.device,
        )


class RNN(_Recurrent):
    """The Elman network, tanh."""

    layer = nn.RNN


class GRU(_Recurrent):
    """The gated recurrent unit."""

    layer = nn.GRU


class LSTM(_Recurrent):
    """Long short-term memory; its state is the pair (h, c)."""

    layer = nn.LSTM

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (h, c), each (layers, B, H)."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros
