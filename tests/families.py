"""Small networks with parameters and buffers that charlm's own do not have, and some that cannot be saved."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from charlm.models.recurrent import GRU


class Tied(GRU):
    """The embedding and the head share one weight."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.weight = self.embedding.weight


class ReassignedBias(GRU):
    """The bias of the head is replaced by one with other initial values."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.bias = nn.Parameter(torch.full((vocab_size,), 0.5))


class WeightNorm(GRU):
    """The weight of the head is computed from its norm and its direction."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        weight_norm(self.head)


class WeightDrop(GRU):
    """DropConnect on the recurrent weights (AWD-LSTM): they are recomputed from trained raw weights in every pass."""

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
    """Cannot be opened again: in evaluation, `F.dropout` returns the parameter itself, which then has two names."""

    def dropped(self, raw: Tensor) -> Tensor:
        return F.dropout(raw, 0.3, self.training)


class BooleanBuffer(GRU):
    """Some units are permanently off."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("on", torch.arange(8) % 3 > 0)

    def features(self, x_BT: Tensor, state: Any) -> Any:
        h_TBH, last = super().features(x_BT, state)
        return h_TBH * self.on, last


class MixedTypes(GRU):
    """A head in double precision, and an integer buffer."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head = nn.Sequential(ToDouble(), nn.Linear(8, vocab_size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class NonPersistentBuffer(GRU):
    """A buffer that is created with the network and not saved."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8), persistent=False)

    def features(self, x_BT: Tensor, state: Any) -> Any:
        h_TBH, last = super().features(x_BT, state)
        return h_TBH * self.scale, last


class Transposed(GRU):
    """A weight that is not contiguous in memory."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.head.weight = nn.Parameter(torch.randn(8, vocab_size).t())


class Another(GRU):
    """Cannot be opened again: its buffer has another shape in each instance."""

    sizes = itertools.count(1)

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("other", torch.zeros(next(self.sizes)))


class Keeper(GRU):
    """Cannot be opened again: its extra state is not a tensor."""

    def get_extra_state(self) -> Any:
        return {"when": range(3)}

    def set_extra_state(self, state: Any) -> None:
        pass


class NotANetwork(nn.Module):
    """Violates the contract."""


class BreaksInRankOne(GRU):
    """Its output is not a number from the 60th step on, but only in the second of several processes."""

    def features(self, x_BT: Tensor, state: Any) -> Any:
        h_TBH, last = super().features(x_BT, state)
        self.steps = getattr(self, "steps", 0) + self.training
        return h_TBH * (math.nan if self.steps >= 60 and os.environ.get("RANK") == "1" else 1.0), last


class RunsOutOfMemoryInRankOne(GRU):
    """An error in the second of several processes only."""

    def features(self, x_BT: Tensor, state: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps >= 60 and os.environ.get("RANK") == "1":
            raise MemoryError
        return super().features(x_BT, state)


class UnusedWeight(GRU):
    """Violates the contract: one of its parameters gets no gradient."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.unused = nn.Parameter(torch.zeros(3))
