"""Auto-complete: the most probable endings of the word that a text ends with, found exactly and not by sampling.

Best-first search, which is A* with the bound that a prefix's probability is at least that of all its endings together:
prefixes are read in order of their probability until no unread one is as probable as the last ending that is wanted.

Shapes: B prefixes read at once, N prefixes not read yet, V vocabulary.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from charlm.inference.decoding import Floats, log_softmax
from charlm.inference.search.beams import Mask, Text, best
from charlm.inference.steps.steps import Ids, Logits, Steps
from charlm.text.vocab import Vocab

# Apostrophes, hyphens, the middle dot of Catalan, and the invisible soft hyphen and (non-)joiners.
WITHIN_WORDS = "'\N{RIGHT SINGLE QUOTATION MARK}-\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{MIDDLE DOT}\u00ad\u200c\u200d"

BATCH = 32  # prefixes read at once
MOST = 4096  # prefixes read in all


@dataclass(frozen=True)
class Completion:
    """An ending of the current word; empty if the word is already complete."""

    ids: Text
    probability: float
    """That the word ends exactly like this: of these characters, and then one that ends a word."""


class Completions(NamedTuple):
    """What was found."""

    endings: list[Completion]
    """The most probable first; equally probable ones in order of their ids."""
    bound: float
    """No ending that is not listed is more probable than this, however long it is.

    Where it equals the probability of the last one listed, as it usually does, nothing better was missed.
    """


def word_ends(vocab: Vocab) -> Mask:
    """Which ids end a word, (V): all but letters, marks, digits, underscores and `WITHIN_WORDS`.

    The special symbols, of which one cannot know it, do not. The mask knows no context: a closing quotation mark that
    is an apostrophe, or a dash of two hyphens, counts as part of the word. In scripts without spaces, such as Chinese,
    a "word" is what stands between two punctuation marks; give a mask of your own for something else.
    """
    ends = np.zeros(len(vocab), bool)
    for i, character in enumerate(vocab.chars, vocab.offset):
        category = unicodedata.category(character)
        ends[i] = category[0] not in "LMN" and category != "Pc" and character not in WITHIN_WORDS
    return ends


def complete(
    steps: Steps,
    logits: Logits,
    state: Any,
    n: int,
    ends: Mask,
    max_length: int = 30,
    *,
    first_id: int = 0,
    batch: int = BATCH,
    most: int = MOST,
) -> Completions:
    """The `n` most probable endings of the current word, of at most `max_length` ids, with their exact probabilities.

    `logits` (1, V) and `state` are those after the text so far; the state is forked, not changed. `ends` (V) marks the
    ids that end a word; ids below `first_id` (special symbols) neither continue nor end one. `n` is at least 1; there
    are fewer endings only where fewer exist or a limit was reached.

    Two limits keep time and memory bounded, and `Completions.bound` tells what they may have cost: endings longer than
    `max_length` are not searched, and where the model is so undecided that `most` prefixes were not enough, the
    search stops. `batch` prefixes are read at once, which is faster than one by one and changes nothing else.
    Raises NotFinite.
    """
    known = np.arange(len(ends)) >= first_id
    ends, inside = ends & known, ~ends & known
    found: list[tuple[float, Text]] = []  # (-log-probability, ids) of the `n` best endings, the best first
    cut = -math.inf  # log-probability of the best prefix that a limit cut off
    texts: list[Text] = [()]  # the prefixes that were read, batch by batch
    states, starts = [state], [0]  # of each batch: its state, and the number of its first prefix
    logprob_B = np.zeros(1)  # of the last batch
    open_N, key_N = np.empty(0), np.empty(0, np.int64)  # of each unread prefix; its key is V * (number of parent) + id
    while ends.any():
        after_BV = logprob_B[:, None] + log_softmax(logits)
        endings = np.minimum(_log_sum(after_BV[:, ends]), logprob_B)  # rounding must not lift them above their bound
        latest = texts[starts[-1] :]
        found = sorted(found + list(zip((-endings).tolist(), latest, strict=True)))[:n]
        least = -found[-1][0] if len(found) == n else -math.inf
        after_BV[:, ~inside] = -math.inf
        longest_B = np.array([len(text) == max_length for text in latest])
        cut = max(cut, after_BV[longest_B].max(initial=-math.inf))
        after_BV[longest_B] = -math.inf
        open_N = np.concatenate([open_N, after_BV.ravel()])
        key_N = np.concatenate([key_N, len(ends) * starts[-1] + np.arange(after_BV.size)])
        open_N[open_N < least] = -math.inf  # an equal one may still come before the last ending, by its ids
        left = most - len(texts)
        order = best(open_N, left + 1)
        cut = max(cut, open_N[order[left:]].max(initial=-math.inf))
        chosen, kept = np.split(order[:left], [batch])
        if not len(chosen):
            break
        chosen = chosen[np.argsort(key_N[chosen])]  # grouped by the batch of their parents
        parents, ids = np.divmod(key_N[chosen], len(ends))
        logprob_B, open_N, key_N = open_N[chosen], open_N[kept], key_N[kept]
        batches = np.searchsorted(starts, parents, "right") - 1
        forks = [steps.select(states[b], parents[batches == b] - starts[b]) for b in np.unique(batches)]
        logits, state = steps.step(ids, steps.join(forks))
        states.append(state)
        starts.append(len(texts))
        texts += [(*texts[parent], new) for parent, new in zip(parents.tolist(), ids.tolist(), strict=True)]
    completions = [Completion(ids, math.exp(-negative)) for negative, ids in found]
    last = completions[-1].probability if len(found) == n else 0.0
    return Completions(completions, max(math.exp(cut), last))


def _log_sum(logprobs_BN: Floats) -> Floats:
    """The logarithm of the sum of probabilities."""
    total: Floats = np.logaddexp.reduce(logprobs_BN, -1)
    return total


class Reader:
    """Reads a text that is being typed, so that one more character costs one step and a deleted one costs nothing.

    It remembers the text and the state after each of its last `remembered` (at least 1) characters that were read
    singly. What was read singly may differ in its last bits from the same text read whole.
    """

    WHOLE = 4  # reading whole costs about so many times less per character

    def __init__(self, steps: Steps, remembered: int = 256) -> None:
        self.steps, self.remembered = steps, remembered
        self._ids: Ids = np.empty(0, np.int64)
        self._after: dict[int, tuple[Logits, Any]] = {}  # by the number of ids read, ascending

    def read(self, ids_T: Ids) -> tuple[Logits, Any]:
        """The logits (1, V) and the state after a text of at least one id, as `Steps.read` gives them."""
        shortest = min(len(ids_T), len(self._ids))
        differ = np.flatnonzero(ids_T[:shortest] != self._ids[:shortest])
        common = int(differ[0]) if len(differ) else shortest
        self._after = {length: after for length, after in self._after.items() if length <= common}
        self._ids = ids_T[:common].copy()  # so that it is right if reading is interrupted
        start = max(self._after, default=0)
        if start == 0 or self.WHOLE * (len(ids_T) - start) > len(ids_T):
            self._after[len(ids_T)] = self.steps.read(ids_T)
        for length in range(max(self._after) + 1, len(ids_T) + 1):
            self._after[length] = self.steps.step(ids_T[length - 1 : length], self._after[length - 1][1])
        self._ids = ids_T.copy()
        for length in sorted(self._after)[: -self.remembered]:
            del self._after[length]
        return self._after[len(ids_T)]
