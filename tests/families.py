"""Small network families whose parameters and buffers are unlike those of charlm's own; and one that cannot be kept."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from charlm.models.recurrent import GRU


class Tied(GRU):
    """One weight to look characters up and to predict them."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.weight = self.embedding.weight


class ReassignedBias(GRU):
    """A bias that is given another start."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.bias = nn.Parameter(torch.full((vocab_size,), 0.5))


class WeightNorm(GRU):
    """A weight that is computed from its size and its direction."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        weight_norm(self.head)


class WeightDrop(GRU):
    """Recurrent weights that are dropped anew each time, made from others that are trained (AWD-LSTM)."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        raw = self.recurrent._parameters.pop("weight_hh_l0")
        self.recurrent.register_parameter("weight_hh_l0_raw", raw)
        self.recurrent.weight_hh_l0 = raw.detach()

    def features(self, x_BT: Tensor, state: Any) -> Any:
        self.recurrent.weight_hh_l0 = self.dropped(self.recurrent.weight_hh_l0_raw)
        return super().features(x_BT, state)

    def dropped(self, raw: Tensor) -> Tensor:
        return F.dropout(raw, 0.3, self.training) * 1


class LeakyWeightDrop(WeightDrop):
    """Cannot be opened again: in evaluation `F.dropout` returns the parameter itself, which gets a second name."""

    def dropped(self, raw: Tensor) -> Tensor:
        return F.dropout(raw, 0.3, self.training)


class BooleanBuffer(GRU):
    """Units that are switched off for good."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("on", torch.arange(8) % 3 > 0)

    def features(self, x_BT: Tensor, state: Any) -> Any:
        h_TBH, last = super().features(x_BT, state)
        return h_TBH * self.on, last


class MixedTypes(GRU):
    """A head in double precision, and a count beside it."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head = nn.Sequential(ToDouble(), nn.Linear(8, vocab_size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class NonPersistentBuffer(GRU):
    """A scale that is made with the network and not kept in its file."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8), persistent=False)

    def features(self, x_BT: Tensor, state: Any) -> Any:
        h_TBH, last = super().features(x_BT, state)
        return h_TBH * self.scale, last


class Transposed(GRU):
    """A weight that does not lie in memory row by row."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.weight = nn.Parameter(torch.randn(8, vocab_size).t())


class Another(GRU):
    """Cannot be opened again: its buffer has another shape each time that it is made."""

    sizes = itertools.count(1)

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("other", torch.zeros(next(self.sizes)))


class Keeper(GRU):
    """Cannot be opened again: it keeps what is no tensor."""

    def get_extra_state(self) -> Any:
        return {"when": range(3)}

    def set_extra_state(self, state: Any) -> None:
        pass


class NotANetwork(nn.Module):
    """Does not keep the contract."""
