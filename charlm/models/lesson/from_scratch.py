"""RNNs from scratch: one-hot inputs, explicit parameters, and a scan over time.

ScanReLU, the lesson's Theano network (rows × columns; x and h are row vectors):
    h_t = relu(x_t W_x + b_x + h_{t-1} W_h + b_h);  y_t = h_t W_y + b_y
    W_h = I, biases 0, the other weights N(0, 2 / rows)
ScanTanh, the char-RNN with an explicit loop over a window:
    h_t = tanh(x_t W_x + W_h h_{t-1} + b_h);  y_t = h_t W_y + b_y
    biases 0, weights N(0, 1 / rows)

The lesson trains them by plain SGD on single sequences, with the loss summed over each sequence (see
``conf/experiment/scan_relu.yaml`` and ``scan_tanh.yaml``).

Shapes: B batch, T time, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.models.ops.scan import scan
from charlm.models.options import HiddenSize
from charlm.models.sequence import Sequence
from charlm.models.state import State
from charlm.options import PositiveInt, checked


def normal(rows: int, columns: int, variance: float) -> nn.Parameter:
    """A weight matrix drawn from N(0, variance)."""
    return nn.Parameter(torch.randn(rows, columns) * math.sqrt(variance))


def zeros(columns: int) -> nn.Parameter:
    """A bias."""
    return nn.Parameter(torch.zeros(columns))


class _Scan(Sequence):
    """What the two share. The state is h, (B, H)."""

    W_x: nn.Parameter
    W_y: nn.Parameter
    b_y: nn.Parameter

    @checked
    def __init__(self, vocab_size: PositiveInt, hidden_size: HiddenSize) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = vocab_size, hidden_size

    @abstractmethod
    def step(self, h_BH: Tensor, x_BV: Tensor) -> Tensor:
        """The state after one more one-hot character, (B, H)."""

    def features(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The states after each input, (T, B, H), and the last state."""
        assert isinstance(state, Tensor)
        x_TBV = F.one_hot(x_BT.t(), self.vocab_size).to(self.W_x.dtype)
        states = scan(self.step, state, x_TBV.unbind(0))
        return torch.stack(states), states[-1]

    def head(self, h_TBH: Tensor) -> Tensor:
        """Logits, (T, B, V)."""
        return h_TBH @ self.W_y + self.b_y

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (B, H)."""
        return self.zeros(batch_size, self.hidden_size)

    def parameter_group(self, name: str) -> str:
        """W_x acts as the embedding, W_y and b_y as the head."""
        return {"W_x": "embedding", "W_y": "head", "b_y": "head"}.get(name, "recurrent")


class ScanReLU(_Scan):
    """The lesson's RNN written from scratch in Theano."""

    @checked
    def __init__(self, vocab_size: int, hidden_size: HiddenSize = 256) -> None:
        super().__init__(vocab_size, hidden_size)
        self.W_x, self.b_x = normal(vocab_size, hidden_size, 2 / vocab_size), zeros(hidden_size)
        self.W_h, self.b_h = nn.Parameter(torch.eye(hidden_size)), zeros(hidden_size)
        self.W_y, self.b_y = normal(hidden_size, vocab_size, 2 / hidden_size), zeros(vocab_size)

    def step(self, h_BH: Tensor, x_BV: Tensor) -> Tensor:
        """The state after one more one-hot character, (B, H)."""
        return torch.relu(x_BV @ self.W_x + self.b_x + h_BH @ self.W_h + self.b_h)


class ScanTanh(_Scan):
    """The char-RNN with an explicit loop."""

    @checked
    def __init__(self, vocab_size: int, hidden_size: HiddenSize = 100) -> None:
        super().__init__(vocab_size, hidden_size)
        self.W_x = normal(vocab_size, hidden_size, 1 / vocab_size)
        self.W_h, self.b_h = normal(hidden_size, hidden_size, 1 / hidden_size), zeros(hidden_size)
        self.W_y, self.b_y = normal(hidden_size, vocab_size, 1 / hidden_size), zeros(vocab_size)

    def step(self, h_BH: Tensor, x_BV: Tensor) -> Tensor:
        """The state after one more one-hot character, (B, H)."""
        return torch.tanh(x_BV @ self.W_x + h_BH @ self.W_h.t() + self.b_h)
