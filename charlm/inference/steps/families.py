"""The networks of charlm as arrays. A further family is one function, registered with `builds`.

A family is recognised by its exact class, because a subclass may compute something else, and so are its parts. Weights
are folded in double precision and rounded once.

Shapes: V characters, E embedding, G gates, H units, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from charlm.inference.steps.arrays import ArrayNetwork, ArraySteps, WindowedArraySteps, after_first
from charlm.inference.steps.combined import EnsembleSteps, TemperedSteps
from charlm.inference.steps.parts import Array, Cell, Doubles, Head, Inputs, Product, States, elman, relu, tanh
from charlm.inference.steps.steps import SteadySteps, Steps, TorchSteps
from charlm.inference.steps.weights import (
    FOLDED,
    LARGEST_TABLE,
    Unusual,
    double,
    dtype_of,
    embedding,
    head_of,
    initial_states,
    is_changed,
    is_plain,
    layers_of,
    linear,
    product,
    require,
    require_dropout,
    table,
    table_of,
)
from charlm.models import recurrent
from charlm.models.ensemble import Ensemble
from charlm.models.lesson import cells, from_scratch, keras, loops
from charlm.models.network import Network
from charlm.models.tempered import Tempered
from charlm.models.windowed import Windowed

Layer: TypeAlias = tuple[Inputs, Cell]
Builder: TypeAlias = Callable[[Any, int | None], Steps]

BUILDERS: dict[type[Network], Builder] = {}


def builds(*families: type[Network]) -> Callable[[Builder], Builder]:
    """Register the decorated function for `families`: it makes steps, in windows of some length unless that is None."""

    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(families, builder))
        return builder

    return register


def steps_of(network: Network, vocab_size: int) -> SteadySteps:
    """The fastest steps of `network`, whose weights must not change while they are used.

    Rows are read one by one in training mode, where they depend on each other or on chance, and in types that are so
    coarse that a few tries do not show how rows round, such as bfloat16.
    """
    fine = all(p.dtype in (torch.float32, torch.float64) for p in network.parameters())
    return SteadySteps(fastest(network), vocab_size, one_by_one=network.training or not fine)


def fastest(network: Network) -> Steps:
    """`network` in arrays if its outputs are known to be the same; in PyTorch if not."""
    try:
        require(not any(map(is_changed, network.modules())))
        if type(network) is Ensemble:
            return EnsembleSteps([fastest(member) for member in network.members if isinstance(member, Network)])
        if type(network) is Tempered:
            return TemperedSteps(fastest(network.network), network.temperature)
        family, window = (network.network, network.window) if type(network) is Windowed else (network, None)
        require(type(family) in BUILDERS and is_plain(network))
        with torch.no_grad(), np.errstate(all="ignore"):
            return BUILDERS[type(family)](family, window)
    except Unusual:
        return TorchSteps(network)


@builds(recurrent.RNN, recurrent.GRU, recurrent.LSTM, cells.RNN, cells.GRU, cells.LSTM)
def _recurrent(network: Any, window: int | None) -> Steps:
    require_dropout(network.dropout)
    return _stacked(network, window, embedding(network.embedding), None)


@builds(keras.SimpleRNN, keras.LSTM)
def _keras(network: Any, window: int | None) -> Steps:
    require_dropout(network.dropout)
    one_hot, norm = network.embedding is None, network.norm
    require(not one_hot or network.vocab_size**2 <= LARGEST_TABLE)
    characters_VE = np.eye(network.vocab_size) if one_hot else embedding(network.embedding)
    if norm is not None:
        require(type(norm) is nn.BatchNorm1d)
        scale = double(norm.weight) / np.sqrt(double(norm.running_var) + norm.eps)
        characters_VE = (characters_VE - double(norm.running_mean)) * scale + double(norm.bias)
    return _stacked(network, window, characters_VE, network.dense)


@builds(from_scratch.ScanReLU, from_scratch.ScanTanh)
def _scan(network: Any, window: int | None) -> Steps:
    dtype = dtype_of(network)
    is_relu = type(network) is from_scratch.ScanReLU
    table_VH = double(network.W_x) + double(network.b_h) + (double(network.b_x) if is_relu else 0)
    weight_HH = double(network.W_h.t() if is_relu else network.W_h)
    layer = table(table_VH[None], dtype), elman(Product(weight_HH[None], dtype), relu if is_relu else tanh)
    head = Product(double(network.W_y.t())[None], dtype, double(network.b_y)[None])
    return _steps(ArrayNetwork([layer], Head(head, network.vocab_size), initial_states(network, 1)), window)


@builds(loops.CharLoop, loops.CharLoopConcat)
def _char_loop(network: Any, window: int | None) -> Steps:
    dtype = dtype_of(network)
    weight, bias = linear(network.input)
    state_HK, character_HE = np.split(weight, [weight.shape[1] - network.embedding.embedding_dim], 1)
    entering_VH = embedding(network.embedding) @ character_HE.T + bias
    hidden = product(network.hidden, dtype)

    def added(i_GCBS: Array, states: States) -> States:
        return (tanh(hidden(states[0] + i_GCBS[0]))[0],)

    def concatenated(i_GCBS: Array, states: States) -> States:
        return (tanh(hidden(relu(before(states[0]) + i_GCBS)[0]))[0],)

    if network.concatenates:
        before = Product(state_HK[None], dtype)
        layer: Layer = table(entering_VH[None], dtype), concatenated
    else:
        layer = table(np.maximum(entering_VH, 0)[None], dtype), added
    return _steps(ArrayNetwork([layer], head_of(network, dtype), initial_states(network, 1)), window)


@builds(loops.KerasLoop)
def _keras_loop(network: Any, window: int | None) -> Steps:
    require((network.places is None) == (window is None))
    require(window is None or not network.offset or window <= network.places)
    dtype = dtype_of(network)
    weight, bias = linear(network.input)
    begun = table(np.maximum(embedding(network.embedding) @ weight.T + bias, 0)[None], dtype)
    hidden = product(network.hidden, dtype)
    activation = {torch.tanh: tanh, torch.relu: relu}[network.activation]

    def cell(i_GCBS: Array, states: States) -> States:
        return (activation(hidden(states[0]))[0] + i_GCBS[0],)

    found = ArrayNetwork([(begun, cell)], head_of(network, dtype), initial_states(network, 1))
    if window is None:
        return _steps(found, None)
    places_N = network.offset * np.arange(network.places - window, network.places)
    return WindowedArraySteps(found, places_N, ((begun.values_GCVS[0],),))  # nothing precedes a window


def _steps(found: ArrayNetwork, window: int | None) -> Steps:
    if window is None:
        return ArraySteps(found)
    return WindowedArraySteps(found, np.zeros(window, np.int64), after_first(found))


def _stacked(network: Any, window: int | None, characters_VE: Doubles, dense: nn.Module | None) -> Steps:
    """The steps of recurrent layers that read `characters_VE`."""
    dtype = dtype_of(network)
    layers: list[Layer] = []
    for weights in layers_of(network.recurrent):
        w_GHK, b_GH, cell = FOLDED[weights.kind](weights, dtype)
        layers.append((Product(w_GHK, dtype, b_GH) if layers else table_of(characters_VE, w_GHK, b_GH, dtype), cell))
    return _steps(ArrayNetwork(layers, head_of(network, dtype, dense), initial_states(network, len(layers))), window)
