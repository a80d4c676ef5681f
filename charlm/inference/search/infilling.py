"""Infilling: what may stand between two pieces of text, by a model that reads from left to right.

Candidates come from a beam search over the middle. Each is judged by what a model of this kind can say exactly: the
probability that the text on the left goes on with the middle and then with the text on the right.

How good is it? A GRU with 256 units (1.61 nats on tiny-shakespeare) had the word that was taken out of held-out text
first in 13 of 100 gaps and among the first five in 26; completion, which sees the left side only, in 8 and 20. Neither
wider beams than 64 nor more than ten characters on the right changed this.

Shapes: B candidates of one length, T length of the right text, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from charlm.inference.decoding import Floats, log_softmax
from charlm.inference.search.beams import Text, best
from charlm.inference.steps.steps import Ids, Logits, Steps


@dataclass(frozen=True)
class Filled:
    """A middle."""

    ids: Text
    logprob: float
    """log p(middle, right | left): natural logarithm, exact, over the whole vocabulary."""


def infill(
    steps: Steps, left_ids: Ids, right_ids: Ids, max_length: int = 20, width: int = 64, *, first_id: int = 0
) -> list[Filled]:
    """Middles of 0 … `max_length` ids between two texts, the best first. `left_ids` has at least one id.

    Of each length, the `width` most probable continuations of the left text that beams find are tried, at most
    ``1 + max_length * width`` in all; with `width` V^max_length these are all there are. Ids below `first_id` (special
    symbols) are never chosen. Time grows with ``max_length * width * len(right_ids)``; the first ten characters on
    the right decide nearly everything.

    Middles are sorted by log p(middle, right | left), not divided by their lengths. This is comparable across lengths:
    if every length of the gap is as likely beforehand, it is, up to a constant, the logarithm of the middle's
    probability given both sides. (Per character, long runs of frequent words win over what belongs there.) Whoever
    knows the length takes the middles of that length only. Raises NotFinite.
    """
    logits, state = steps.read(left_ids)
    found: list[Filled] = []
    texts: list[Text] = [()]
    logprob_B = np.zeros(1)
    for length in range(max_length + 1):
        total_B = logprob_B + _logprob(steps, logits, state, right_ids)
        found += map(Filled, texts, total_B.tolist())
        if length == max_length:
            break
        after_BV = logprob_B[:, None] + log_softmax(logits)
        after_BV[:, :first_id] = -np.inf
        chosen = np.sort(best(after_BV.ravel(), width))  # in order of their ids, which decide between equals
        rows, ids = np.divmod(chosen, after_BV.shape[1])
        texts = [(*texts[row], new) for row, new in zip(rows.tolist(), ids.tolist(), strict=True)]
        logprob_B = after_BV[rows, ids]
        logits, state = steps.step(ids, steps.select(state, rows))
    return sorted(found, key=lambda filled: (-filled.logprob, filled.ids))


def _logprob(steps: Steps, logits: Logits, state: Any, ids_T: Ids) -> Floats:
    """log p(ids) after each row of `state`, whose next logits are `logits` (B, V): (B)."""
    total_B = np.zeros(len(logits))
    for t, new in enumerate(ids_T):
        if t > 0:
            logits, state = steps.step(np.full(len(total_B), ids_T[t - 1]), state)
        total_B += log_softmax(logits)[:, new]
    return total_B
