"""Recurrent state: a tensor or a (nested) tuple of tensors whose dimension 0 is the batch.

These functions work for every family: carrying, detaching and forking rows does not depend on the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = "Tensor | tuple[State, ...]"


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply `function` to every tensor of `state`."""
    if isinstance(state, Tensor):
        return function(state)
    return tuple(map_state(function, part) for part in state)


def turn(state: State) -> State:
    """From (B, layers, H) to PyTorch's (layers, B, H), or back."""
    return map_state(lambda part: part.transpose(0, 1).contiguous(), state)


def detach(state: State) -> State:
    """The state without its graph (the lesson's `repackage_var`)."""
    return map_state(Tensor.detach, state)


def select_rows(state: State, rows: Tensor) -> State:
    """The state of the batch rows `rows` (int64), in that order; rows may repeat."""
    return map_state(lambda part: part.index_select(0, rows), state)


def where_rows(mask_B: Tensor, state: State, other: State) -> State:
    """The rows of `state` where `mask_B` (bool) is true, those of `other` elsewhere."""
    if isinstance(state, Tensor) and isinstance(other, Tensor):
        return torch.where(mask_B.view(-1, *[1] * (state.dim() - 1)), state, other)
    return tuple(where_rows(mask_B, ours, theirs) for ours, theirs in zip(state, other, strict=True))
