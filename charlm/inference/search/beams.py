"""Beam search: the most probable texts that one can find by following several at once.

After each character the `width` most probable texts go on. A text that has ended is kept aside, so it neither takes a
place from the others nor is it lost when they are more probable for a while. The search is over when `width` texts
have ended that no open one can beat any more: a bound, as in "Best-First Beam Search" (Meister, Vieira & Cotterell
2020), not the common stop at the first `width` ends.

The most probable text is seldom one to read: it repeats itself, the more the wider the beams, and the texts of one
search differ little. Samples vary; search where texts are short or constrained.

Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from charlm.inference.constraints.constraint import Charset, Constraint
from charlm.inference.decoding import Floats, log_softmax
from charlm.inference.steps.steps import Ids, Logits, Steps

Text: TypeAlias = tuple[int, ...]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Beam:
    """A text that was found."""

    ids: Text
    logprob: float
    """Natural logarithm of its probability, given what was read before."""
    logprobs: tuple[float, ...] = ()
    """Those of its ids, whose sum it is."""


class _Open(NamedTuple):
    """A text that goes on, with the state of the constraint and the ids that may follow."""

    ids: Text
    logprob: float
    logprobs: tuple[float, ...]
    place: Any
    allowed: Mask


def best(scores_N: Floats, count: int) -> Ids:
    """The indices of the `count` highest scores, best first, lower indices first among equals; none of -inf."""
    found = np.flatnonzero(scores_N > -np.inf)
    if count < len(found):
        found = found[scores_N[found] >= np.partition(scores_N[found], -count)[-count]]
    return found[np.argsort(-scores_N[found], kind="stable")][:count]


def _ranked(scores_N: Floats, first: int) -> Iterator[int]:
    """All indices as `best` sorts them. The `first` ones cost little."""
    start, count = 0, first
    while start < count:
        order = best(scores_N, count)
        yield from order[start:].tolist()
        start, count = count, min(4 * count, len(scores_N))


def beam_search(
    steps: Steps,
    logits: Logits,
    state: Any,
    length: int,
    width: int,
    *,
    first_id: int = 0,
    constraint: Constraint | None = None,
    ended: Callable[[Text], bool] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Beam]:
    """Up to `width` texts of at most `length` ids that continue what `steps` has read, the best first.

    `logits` (1, V) and `state` are those after the text so far; the state is forked, not changed. Log-probabilities
    are those of the model, over the whole vocabulary, although ids below `first_id` (special symbols) and ids that the
    constraint forbids are never chosen. With width 1 the search is greedy; with V^(length-1) or more it is exact.

    A text ends at `length`, where the constraint allows nothing more, or as soon as `ended(ids)` is true. The
    constraint must let it end there: otherwise a stop is passed over, and a text that cannot go on is dropped, so that
    the list may be empty. Ended texts are found among those that are at least as probable as the `width` that go on.

    Texts of different lengths are compared by their whole probability, which favours short ones. Equal ones are in
    order of their ids.

    `progress` is called with 1 after each character. Raises NotFinite.
    """
    rules = constraint or Charset(np.ones(logits.shape[-1], bool))
    if length == 0 or not (allowed := rules.allowed(rules.start, length)).any():
        return [Beam((), 0.0)] if rules.may_end(rules.start) else []
    # Open texts are in order of their ids, so that candidates are, too, and a stable sort decides between equals.
    texts, finished = [_Open((), 0.0, (), rules.start, allowed)], list[Beam]()
    for remaining in range(length - 1, -1, -1):
        each = log_softmax(logits)
        scores = np.array([[text.logprob] for text in texts]) + each
        scores[:, :first_id] = -np.inf
        scores[~np.stack([text.allowed for text in texts])] = -np.inf
        chosen: dict[int, _Open] = {}
        over: list[Beam] = []  # ended here; of the same length, so no more than `width` of them can be of use
        for index in _ranked(scores.ravel(), 2 * width):
            row, new = divmod(index, scores.shape[1])
            ids, logprob = (*texts[row].ids, new), float(scores[row, new])
            logprobs = (*texts[row].logprobs, float(each[row, new]))
            place = rules.advance(texts[row].place, new)
            stuck = remaining == 0 or not (allowed := rules.allowed(place, remaining)).any()
            if (stuck or (ended is not None and ended(ids))) and rules.may_end(place):
                if len(over) < width:
                    over.append(Beam(ids, logprob, logprobs))
            elif not stuck:
                chosen[index] = _Open(ids, logprob, logprobs, place, allowed)
            if len(over if remaining == 0 else chosen) == width:
                break
        if progress is not None:
            progress(1)
        finished = sorted(finished + over, key=lambda beam: (-beam.logprob, beam.ids))[:width]
        highest = max((text.logprob for text in chosen.values()), default=-np.inf)
        if not chosen or (len(finished) == width and finished[-1].logprob > highest):
            break
        rows, texts = [index // scores.shape[1] for index in sorted(chosen)], [chosen[i] for i in sorted(chosen)]
        logits, state = steps.step(np.array([text.ids[-1] for text in texts]), steps.select(state, np.array(rows)))
    return finished
