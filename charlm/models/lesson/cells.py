"""The recurrent layers again, as explicit cells and a loop over time.

Equations, names and gate order are those of PyTorch's `nn.RNNCell`, `nn.GRUCell` and `nn.LSTMCell` (see
`charlm.models.recurrent`): the same weights give the same numbers.

Shapes: B batch, T time, I inputs, H hidden, G gates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.models import recurrent
from charlm.models.ops.scan import scan
from charlm.models.options import Activation
from charlm.options import checked


class Cell(nn.Module):
    """One step of a recurrent layer. Its state is a tuple of tensors (B, H), the first of which is the output.

    `biases` is 2 as in PyTorch, or 1 as in Keras (none on the recurrent side). Parameters are initialised uniformly in
    ±1/√H, as in PyTorch.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1

    def __init__(self, input_size: int, hidden_size: int, biases: int = 2) -> None:
        super().__init__()
        rows = self.gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows)) if biases == 2 else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def inputs(self, x: Tensor) -> Tensor:
        """The input's contribution to the gates, for one step or all steps at once: (…, I) → (…, G·H)."""
        return F.linear(x, self.weight_ih, self.bias_ih)

    @abstractmethod
    def step(self, i_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after a step, given the input's contribution to the gates."""

    def forward(self, x_BI: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after one step, given the input itself."""
        return self.step(self.inputs(x_BI), state)

    def recurrent(self, h_BH: Tensor) -> Tensor:
        """The state's contribution to the gates, (B, G·H)."""
        return F.linear(h_BH, self.weight_hh, self.bias_hh)


class RNNCell(Cell):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with relu instead of tanh."""

    gates = 1

    @checked
    def __init__(self, input_size: int, hidden_size: int, biases: int = 2, activation: Activation = "tanh") -> None:
        super().__init__(input_size, hidden_size, biases)
        self.activation = torch.tanh if activation == "tanh" else torch.relu

    def step(self, i_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.activation(i_BG + self.recurrent(state[0])),)


class GRUCell(Cell):
    """Gates r, z, n."""

    gates = 3

    def step(self, i_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """n + z ⊙ (h - n), which is (1 - z) ⊙ n + z ⊙ h."""
        (h,) = state
        i_r, i_z, i_n = i_BG.chunk(3, -1)
        h_r, h_z, h_n = self.recurrent(h).chunk(3, -1)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + r * h_n)
        return (n + z * (h - n),)


class LSTMCell(Cell):
    """Gates i, f, g, o; state (h, c)."""

    gates, states = 4, 2

    def step(self, i_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """c' = f ⊙ c + i ⊙ g and h' = o ⊙ tanh(c')."""
        h, c = state
        i, f, g, o = (i_BG + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def unroll(cell: Cell, x_TBI: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a cell over time: outputs (T, B, H) and the state after the last step."""
    inputs_TBG = cell.inputs(x_TBI)  # of all steps in one matrix product
    states = scan(lambda before, i_BG: cell.step(i_BG, before), state, inputs_TBG.unbind(0))
    return torch.stack([after[0] for after in states]), states[-1]


Parts: TypeAlias = Tensor | tuple[Tensor, ...]


class StackedCells(nn.Module):
    """Stacked layers of one cell class, with the interface of `nn.RNN`; dropout between layers."""

    def __init__(
        self, cell: type[Cell], input_size: int, hidden_size: int, num_layers: int, dropout: float = 0.0, **options: Any
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_size = num_layers, hidden_size
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        self.cells = nn.ModuleList([cell(size, hidden_size, **options) for size in sizes])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TBI: Tensor, state: Parts) -> tuple[Tensor, Parts]:
        """Outputs of the last layer (T, B, H), and the state: one (layers, B, H), or a tuple of them."""
        parts = (state,) if isinstance(state, Tensor) else state
        last = []
        for layer, cell in enumerate(self.cells):
            x_TBI = self.dropout(x_TBI) if layer else x_TBI
            assert isinstance(cell, Cell)
            x_TBI, after = unroll(cell, x_TBI, tuple(part[layer] for part in parts))
            last.append(after)
        stacked = tuple(torch.stack(part) for part in zip(*last, strict=True))
        return x_TBI, stacked if len(stacked) > 1 else stacked[0]


class RNN(recurrent.RNN):
    """The Elman network from an explicit cell."""

    layer: ClassVar[Any] = staticmethod(partial(StackedCells, RNNCell))


class GRU(recurrent.GRU):
    """The gated recurrent unit from an explicit cell."""

    layer: ClassVar[Any] = staticmethod(partial(StackedCells, GRUCell))


class LSTM(recurrent.LSTM):
    """Long short-term memory from an explicit cell."""

    layer: ClassVar[Any] = staticmethod(partial(StackedCells, LSTMCell))
