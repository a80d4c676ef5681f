"""Checks of a damaged checkpoint before training resumes from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from charlm.errors import UsageError

# What PyTorch's fused kernels (of Adam, AdamW, SGD and Adagrad) keep for each weight, of its shape.
OF_THE_WEIGHTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum")


def check_state(optimizer: Any) -> None:
    """Raise UsageError for an optimiser whose state, from a checkpoint, a fused kernel would write past the end of.

    Such kernels take its word for the size of a tensor. Every class that has them takes an option ``fused``, which
    the checkpoint itself could turn on; hence all of these are checked, fused or not. What others keep may have any
    shape (Adafactor's rows and columns): their tensor operations look at shapes themselves, and a misfit ends
    in an error, which is told as that of a damaged checkpoint.
    """
    fusible = "fused" in optimizer.defaults or any("fused" in group for group in optimizer.param_groups)
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            fits = value.layout == torch.strided and value.device.type in ("cpu", weights.device.type)
            if fusible and name == "step":
                fits = fits and value.numel() == 1
            elif fusible and name in OF_THE_WEIGHTS:
                dense = value.is_contiguous() or value.stride() == weights.stride()
                fits = fits and dense and value.shape == weights.shape
            if not fits:
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
