"""Checks of a damaged checkpoint before training resumes from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from charlm.errors import UsageError


def check_state(optimizer: Any) -> None:
    """Raise UsageError for an optimiser whose state, from a checkpoint, is not of the size of its weights.

    PyTorch's fused kernels take its word for it: a tensor that is too small would be written past its end.
    """
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and not (
                value.layout == torch.strided
                and value.is_contiguous()
                and value.device.type in ("cpu", weights.device.type)
                and (value.shape == weights.shape or value.numel() == 1)
            ):
                raise UsageError(
                    f"the checkpoint cannot be resumed, it is damaged: the optimiser's {name} does not fit"
                )


def value_types(groups: list[dict[str, Any]], schedules: list[dict[str, Any]]) -> Any:
    """What sorts of values an optimiser's groups hold, besides the weights, and its schedules' states."""
    return value_type([[dict(group, params=None) for group in groups], schedules])


def value_type(value: Any) -> Any:
    """What sort of value it is: numbers are alike; dicts and lists are as what they hold."""
    if isinstance(value, dict):
        return {key: value_type(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [value_type(part) for part in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
