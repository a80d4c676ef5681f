"""Settings of an evaluation that are chosen on another text than the one that is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

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
    return best


def fit_temperature(logits_NV: Tensor, targets_N: Tensor) -> float:
    """The temperature with the lowest mean loss.

    The loss is convex in its inverse β, whose derivative is the mean difference of the expected and the target's logit.
    """
    logits_NV = logits_NV.double()
    chosen_N = logits_NV.gather(-1, targets_N.unsqueeze(-1))[:, 0]
    low, high = 0.01, 100.0
    for _ in range(60):
        beta = math.sqrt(low * high)
        expected_N = ((beta * logits_NV).softmax(-1) * logits_NV).sum(-1)
        if (expected_N - chosen_N).mean() < 0:
            low = beta
        else:
            high = beta
    return 1 / math.sqrt(low * high)
