"""The weights of PyTorch's and charlm's layers, as the arrays of `charlm.inference.steps.parts` take them.

A part of a network is recognised by its exact class. Weights are folded in double precision and rounded once.

Shapes: V characters, E embedding, G gates, H units, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from charlm.inference.steps.arrays import Layers
from charlm.inference.steps.parts import Cell, Doubles, Head, Product, Table, elman, gru, in_blocks, lstm, relu, tanh
from charlm.models.lesson import cells
from charlm.models.network import Network

LARGEST_TABLE = 2**27  # numbers: half a gigabyte


class Unusual(Exception):
    """A network that is not built as its class usually is."""


def require(condition: bool) -> None:
    """Raise `Unusual` unless `condition` holds."""
    if not condition:
        raise Unusual


def is_changed(module: nn.Module) -> bool:
    """Whether a module may compute something else than its class says, or random things as in training."""
    own = {"forward", "features", "embed", "step", "head"} & vars(module).keys()
    return bool(module.training or module._forward_hooks or module._forward_pre_hooks or own)


def is_plain(network: Network) -> bool:
    """Whether all weights are on the CPU and of one type, float32 or float64."""
    parts = [*network.parameters(), *(part for part in network.buffers() if part.is_floating_point())]
    dtypes = {part.dtype for part in parts}
    return dtypes in ({torch.float32}, {torch.float64}) and all(part.device.type == "cpu" for part in parts)


def dtype_of(network: Network) -> DTypeLike:
    """The type of the weights."""
    return np.float64 if next(network.parameters()).dtype == torch.float64 else np.float32


def double(tensor: Tensor) -> Doubles:
    """The values of a tensor."""
    return tensor.detach().double().numpy()


def linear(module: nn.Module) -> tuple[Doubles, Doubles]:
    """The weight (H, K) and bias (H) of a linear layer."""
    require(type_before_parametrizations(module) is nn.Linear)
    assert isinstance(module, nn.Linear)
    weight = double(module.weight)
    return weight, np.zeros(len(weight)) if module.bias is None else double(module.bias)


def embedding(module: nn.Module) -> Doubles:
    """The vectors of characters, (V, E)."""
    require(type_before_parametrizations(module) is nn.Embedding)
    assert isinstance(module, nn.Embedding)
    require(module.max_norm is None)  # which changes weights that are read
    return double(module.weight)


def require_dropout(module: nn.Module) -> None:
    """Raise `Unusual` unless `module` does nothing in evaluation."""
    require(type(module) is nn.Dropout)


def product(module: nn.Module, dtype: DTypeLike) -> Product:
    """A linear layer."""
    weight, bias = linear(module)
    return Product(weight[None], dtype, bias[None])


def table(values_GVH: Doubles, dtype: DTypeLike) -> Table:
    """A table, unless it overflows: the sums of which it consists may then be another thing in single precision."""
    found = Table(values_GVH, dtype)
    require(bool(np.isfinite(found.values_GCVS).all()))
    return found


def table_of(characters_VE: Doubles, w_GHE: Doubles, b_GH: Doubles, dtype: DTypeLike) -> Table:
    """What each character adds to the gates."""
    require(len(characters_VE) * b_GH.size <= LARGEST_TABLE)
    return table(characters_VE @ w_GHE.swapaxes(1, 2) + b_GH[:, None], dtype)


def head_of(network: Any, dtype: DTypeLike, dense: nn.Module | None = None) -> Head:
    """The head, after a dense relu layer if there is one."""
    vocab_size = len(linear(network.head)[1])
    return Head(product(network.head, dtype), vocab_size, None if dense is None else product(dense, dtype))


def initial_states(network: Network, layers: int) -> Layers:
    """The state of one row before the first character, layer by layer."""
    state = network.initial_state(1)
    parts = state if isinstance(state, tuple) else (state,)
    arrays = [part.detach().reshape(1, layers, -1).numpy() for part in parts if isinstance(part, Tensor)]
    return tuple(tuple(in_blocks(array[:, layer]) for array in arrays) for layer in range(layers))


class _Weights(NamedTuple):
    """Those of a layer, and its class of cells."""

    kind: type[cells.Cell]
    w_GHK: Doubles
    u_GHH: Doubles
    b_GH: Doubles
    c_GH: Doubles  # the recurrent bias
    relu: bool = False


def layers_of(layers: nn.Module) -> Iterator[_Weights]:
    """The weights of each layer."""
    kinds = {nn.RNN: cells.RNNCell, nn.GRU: cells.GRUCell, nn.LSTM: cells.LSTMCell}
    if type(layers) is cells.StackedCells:
        require_dropout(layers.dropout)
        for cell in layers.cells:
            require(type_before_parametrizations(cell) in kinds.values())
            is_relu = getattr(cell, "activation", None) is torch.relu
            yield _weights(type_before_parametrizations(cell), cell, "", is_relu)
        return
    # Not parametrised ones, which are of another class: PyTorch's layers keep a list of weights of their own.
    require(type(layers) in kinds)
    assert isinstance(layers, nn.RNNBase)
    require(not layers.bidirectional and not layers.batch_first and not layers.proj_size and layers.bias)
    for layer in range(layers.num_layers):
        yield _weights(kinds[type(layers)], layers, f"_l{layer}", layers.mode == "RNN_RELU")


def _weights(kind: type[cells.Cell], owner: Any, suffix: str, is_relu: bool) -> _Weights:
    w, u, b, c = (getattr(owner, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    c = torch.zeros_like(b) if c is None else c
    w_GHK, u_GHH, b_GH, c_GH = (double(part).reshape(kind.gates, -1, *part.shape[1:]) for part in (w, u, b, c))
    return _Weights(kind, w_GHK, u_GHH, b_GH, c_GH, is_relu)


# How the weights of each cell enter `charlm.inference.steps.parts`. σ(x) = (1 + tanh(x / 2)) / 2: the halves of x are
# folded in, so that one tanh serves several gates.


def _elman(weights: _Weights, dtype: DTypeLike) -> tuple[Doubles, Doubles, Cell]:
    _, w, u, b, c, is_relu = weights
    return w, b + c, elman(Product(u, dtype), relu if is_relu else tanh)


def _gru(weights: _Weights, dtype: DTypeLike) -> tuple[Doubles, Doubles, Cell]:
    _, w, u, b, c, _ = weights
    halves = np.array([0.5, 0.5, 1.0])[:, None]
    # What is added after the product; n's recurrent bias is inside r ⊙ (…), where all the recurrent ones can be.
    return w * halves[..., None], b * halves, gru(Product(u / 2, dtype, c / 2))


def _lstm(weights: _Weights, dtype: DTypeLike) -> tuple[Doubles, Doubles, Cell]:
    _, w, u, b, c, _ = weights
    order = [0, 1, 3, 2]  # i, f, o, g
    halves = np.array([0.5, 0.5, 0.5, 1.0])
    w, u, bias = (w[order] * halves[:, None, None], u[order] * halves[:, None, None], (b + c)[order] * halves[:, None])
    return w, bias, lstm(Product(u, dtype))


FOLDED = {cells.RNNCell: _elman, cells.GRUCell: _gru, cells.LSTMCell: _lstm}
