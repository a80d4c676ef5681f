"""The steps of several networks as one, and of one with a temperature.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from charlm.inference.steps.steps import Ids, Logits, Steps


class EnsembleSteps:
    """The mean of the probabilities of several networks, as `charlm.models.ensemble.Ensemble`. Its state is a tuple."""

    def __init__(self, members: Sequence[Steps]) -> None:
        self.members = members

    def read(self, ids_T: Ids) -> tuple[Logits, tuple[Any, ...]]:
        """See `Steps`."""
        return _mean([member.read(ids_T) for member in self.members])

    def step(self, ids_B: Ids, state: tuple[Any, ...]) -> tuple[Logits, tuple[Any, ...]]:
        """See `Steps`."""
        return _mean([member.step(ids_B, part) for member, part in zip(self.members, state, strict=True)])

    def select(self, state: tuple[Any, ...], rows_B: Ids) -> tuple[Any, ...]:
        """See `Steps`."""
        return tuple(member.select(part, rows_B) for member, part in zip(self.members, state, strict=True))

    def join(self, states: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """See `Steps`."""
        return tuple(m.join(parts) for m, parts in zip(self.members, zip(*states, strict=True), strict=True))


class TemperedSteps:
    """The logits of `steps` divided by `temperature`, as `charlm.models.tempered.Tempered`."""

    def __init__(self, steps: Steps, temperature: float) -> None:
        self.steps, self.temperature = steps, temperature
        self.select, self.join = steps.select, steps.join

    def read(self, ids_T: Ids) -> tuple[Logits, Any]:
        """See `Steps`."""
        logits, state = self.steps.read(ids_T)
        return logits / self.temperature, state

    def step(self, ids_B: Ids, state: Any) -> tuple[Logits, Any]:
        """See `Steps`."""
        logits, state = self.steps.step(ids_B, state)
        return logits / self.temperature, state


def _mean(found: Sequence[tuple[Logits, Any]]) -> tuple[Logits, tuple[Any, ...]]:
    """The logarithm of the mean of softmax(logits), and the states."""
    with np.errstate(all="ignore"):
        logs = np.stack([_log_softmax(logits) for logits, _ in found])
        largest = logs.max(0)
        mean = np.log(np.exp(logs - largest).sum(0)) + largest - math.log(len(found))
    return mean, tuple(state for _, state in found)


def _log_softmax(logits_BV: Logits) -> Logits:
    """The logarithms of the probabilities."""
    shifted = logits_BV - logits_BV.max(-1, keepdims=True)
    logs: Logits = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs
