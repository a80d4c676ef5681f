"""Settings of an evaluation that are chosen on another text than the one that is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from charlm.errors import UsageError

Settings = dict[str, float]

FACTORS = (4.0, 2.0, math.sqrt(2))
STEPS = 6  # at most, in one direction


def descend(loss: Callable[[Settings], float], start: Mapping[str, float]) -> Settings:
    """The settings (all positive) with the lowest loss that is found by changing one after another by factors.

    Each is multiplied by 4, or else divided by 4, as long as that lowers the loss, and then once by 2 and by √2.
    """
    best = dict(start)
    lowest = loss(best)

    def improves(name: str, factor: float) -> bool:
        nonlocal best, lowest
        tried = best | {name: best[name] * factor}
        found = loss(tried)
        if found < lowest:  # not for NaN
            best, lowest = tried, found
            return True
        return False

    for name in start:
        for size in FACTORS:
            for factor in (size, 1 / size):
                steps = STEPS if size == FACTORS[0] else 1
                if improves(name, factor):
                    while (steps := steps - 1) and improves(name, factor):
                        pass
                    break
    if not math.isfinite(lowest):
        raise UsageError(f"the losses are not finite with any of the settings that were tried, from {dict(start)}")
    return best


def fit_temperature(logits_NV: Tensor, targets_N: Tensor) -> float:
    """The temperature, from 1/20 to 20, with the lowest mean loss.

    The loss is convex in its inverse β, whose derivative is the mean difference of the expected and the target's logit.
    """
    low, high = 1 / 20, 20.0
    for _ in range(25):
        beta = math.sqrt(low * high)
        slope = 0.0
        for part_NV, chosen_N in zip(logits_NV.split(1024), targets_N.split(1024), strict=True):
            part_NV = part_NV.double().clamp(min=-1e4)  # finite, as 0 · ∞ is not
            expected_N = ((beta * part_NV).softmax(-1) * part_NV).sum(-1)
            slope += float((expected_N - part_NV.gather(-1, chosen_N.unsqueeze(-1))[:, 0]).sum())
        low, high = (beta, high) if slope < 0 else (low, beta)
    return 1 / math.sqrt(low * high)
