"""What a model's vocabulary has not got, priced by adaptive codes: no table has to be sent, both sides count alike.

Evaluation adds these costs to the network's, and compression spends them, so that any text has a price.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from charlm.text.vocab import Vocab

CODE_POINTS = 0x110000  # of Unicode, the surrogates included


class Flags:
    """The Krichevsky–Trofimov model of a choice among K alternatives, with counts of its own in each context.

    p(k) = (count of k + 1/2) / (n + K/2) after n choices: at most about log2(n) / 2 bits more for each free parameter
    than the best fixed probabilities (1981, "The performance of universal encoding").
    """

    def __init__(self, alternatives: int = 2) -> None:
        self._alternatives = alternatives
        self._counts: dict[Hashable, list[int]] = {}

    def probability(self, k: int, context: Hashable = None) -> float:
        """p(k) in `context`."""
        counts = self._of(context)
        return (counts[k] + 0.5) / (sum(counts) + self._alternatives / 2)

    def add(self, k: int, context: Hashable = None, times: int = 1) -> None:
        """Count `times` choices of `k`."""
        self._of(context)[k] += times

    def runs(self, k: int, most: int, context: Hashable = None) -> NDArray[np.float64]:
        """The probabilities of 0, 1, …, `most` choices of `k` before another one; the last means `most` or more.

        Choosing a run costs the same as its choices one by one.
        """
        counts, steps = self._of(context), np.arange(most)
        once_more = (counts[k] + 0.5 + steps) / (sum(counts) + self._alternatives / 2 + steps)
        return np.append(1.0, np.cumprod(once_more)) * np.append(1 - once_more, 1.0)

    def _of(self, context: Hashable) -> list[int]:
        return self._counts.setdefault(context, [0] * self._alternatives)


class Urn:
    """An adaptive code of characters: after n of them, 1 / (n + 1) for a new one, count / (n + 1) for one seen before.

    A new one is then any code point, all equally likely.
    """

    def __init__(self) -> None:
        self.chars: list[str] = []  # seen, in the order of their first occurrence
        self._slots: dict[str, int] = {}
        self._weights = np.ones(2)  # 1 for a new character, then the counts, then room for more
        self._total = 1

    def slot(self, char: str) -> int:
        """0 for a new character, else its place in `chars`, from 1."""
        return self._slots.get(char, 0)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of a new character, and of each in `chars`: (1 + len(chars))."""
        return self._weights[: len(self.chars) + 1] / self._total

    def nats(self, char: str) -> float:
        """What the code of `char` costs now."""
        slot = self.slot(char)
        return math.log(self._total / self._weights[slot]) + (0 if slot else math.log(CODE_POINTS))

    def add(self, char: str) -> None:
        """Count `char`."""
        slot = self.slot(char)
        if not slot:
            self.chars.append(char)
            slot = self._slots[char] = len(self.chars)
            if slot == len(self._weights):
                self._weights = np.append(self._weights, np.zeros(slot))
            self._weights[slot] = 0
        self._weights[slot] += 1
        self._total += 1


def unknown_nats(text: str, vocab: Vocab) -> NDArray[np.float64]:
    """What each character of `text` costs besides the network's prediction of it, in nats, (len(text)).

    Without <unk>, a flag says whether the character is known; with it, the network's own prediction does. An unknown
    character then costs its code in an urn.
    """
    known = vocab.knows(text)
    nats = np.zeros(len(text))
    if not vocab.unk:
        before = np.arange(len(text))
        known_before: NDArray[np.int64] = np.cumsum(known) - known
        same_before = np.where(known, known_before, before - known_before)
        nats = np.log((before + 1) / (same_before + 0.5))
    urn = Urn()
    for i in np.flatnonzero(~known).tolist():
        nats[i] += urn.nats(text[i])
        urn.add(text[i])
    return nats
