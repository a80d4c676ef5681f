"""Embedding → built-in recurrent layers → linear head.

RNN (Elman 1990, "Finding structure in time"):
    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
    IRNN: the same, with W_hh initialised as I (Le, Jaitly & Hinton 2015, arXiv:1504.00941; with tanh, as in the lesson)

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

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from charlm.errors import OptionError
from charlm.models.options import Dropout, EmbeddingSize, HiddenSize, Identity, Layers, OutputDropout
from charlm.models.sequence import Sequence
from charlm.models.state import State, turn
from charlm.options import PositiveInt, checked


class RecurrentLayers(Protocol):
    """The interface that `nn.RNN`, `nn.GRU` and `nn.LSTM` share."""

    num_layers: int
    hidden_size: int

    def __call__(self, x_TBE: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs (T, B, H) and the state (layers, B, H) after the last step."""


class _Recurrent(Sequence):
    """What the families share; see the module's docstring for the equations."""

    layer: ClassVar[Any]

    @checked
    def __init__(
        self,
        vocab_size: PositiveInt,
        embedding_size: EmbeddingSize = 42,
        hidden_size: HiddenSize = 256,
        layers: Layers = 1,
        dropout: Dropout = 0.0,
        output_dropout: OutputDropout = 0.0,
    ) -> None:
        super().__init__()
        if dropout and layers == 1:
            raise OptionError("dropout", "acts between layers: use two or more layers, or output_dropout", dropout)
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.recurrent: RecurrentLayers = self.layer(embedding_size, hidden_size, layers, dropout=dropout)
        self.dropout = nn.Dropout(output_dropout)
        self.head = nn.Linear(hidden_size, vocab_size)

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs of the last layer (T, B, H) and the state after the last step."""
        e_TBE = self.embedding(x_BT.t())  # time first, the layout of the recurrent kernels
        h_TBH, last = self.recurrent(e_TBE, turn(state))
        return self.dropout(h_TBH), turn(last)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (B, layers, H)."""
        return self.zeros(batch_size, self.recurrent.num_layers, self.recurrent.hidden_size)


class RNN(_Recurrent):
    """The Elman network, tanh."""

    layer: ClassVar[Any] = nn.RNN

    @checked
    def __init__(self, *arguments: Any, identity: Identity = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if identity:
            for name, weight in self.named_parameters():
                if "weight_hh" in name:
                    nn.init.eye_(weight)


class GRU(_Recurrent):
    """The gated recurrent unit."""

    layer: ClassVar[Any] = nn.GRU


class LSTM(_Recurrent):
    """Long short-term memory; its state is the pair (h, c)."""

    layer: ClassVar[Any] = nn.LSTM

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (h, c), each (B, layers, H)."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros
