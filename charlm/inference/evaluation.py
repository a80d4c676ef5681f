"""The figures of an evaluation: from the losses of every character to what a person quotes.

Shapes: N targets.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.inference.losses import Losses

BLOCK = 1000  # characters: far longer than losses are correlated
RESAMPLES = 2000
BINS = 15  # of confidence, as in Guo et al. 2017
KINDS = ("other letters", "upper case", "digits", "spaces", "punctuation", "unknown")


@dataclass(frozen=True)
class Part:
    """Some of the characters: how many, their mean loss in nats, and how many of them were predicted exactly."""

    characters: int
    nats_per_character: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """What the losses of a text amount to. All means are exact, over the same `characters`."""

    losses: Losses

    @property
    def characters(self) -> int:
        """The number of targets."""
        return len(self.losses.nats)

    @cached_property
    def bytes(self) -> int:
        """The size of the targets in UTF-8."""
        sizes = np.array([len(c.encode("utf-8", "surrogatepass")) for c in self._alphabet])
        return int(sizes[self._codes[self.losses.places]].sum())

    @cached_property
    def nats(self) -> float:
        """Nats per character: the mean of −ln p, unknown characters at their price."""
        return float(self.losses.nats.mean())

    @property
    def bits(self) -> float:
        """Bits per character."""
        return self.nats / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text in UTF-8, comparable between models that read it in other units."""
        return self.bits * self.characters / self.bytes

    @property
    def perplexity(self) -> float:
        """e^nats."""
        return math.exp(min(self.nats, 700))

    def accuracy(self, best: int = 1) -> float:
        """The share of characters that were among the `best` most likely ones."""
        ranks = self.losses.ranks
        return float(((ranks >= 0) & (ranks < best)).mean())

    @cached_property
    def calibration_error(self) -> float:
        """The expected calibration error (Guo et al. 2017, arXiv:1706.04599) of the most likely character.

        The mean distance between confidence and accuracy, over 15 bins of equal width of the confidence, weighted by
        their number of characters. Without those that the network did not predict.
        """
        predicted = self.losses.ranks >= 0
        if not predicted.any():
            return math.nan
        confidences = self.losses.confidences[predicted].astype(np.float64)
        correct = self.losses.ranks[predicted] == 0
        bins = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
        gaps = np.bincount(bins, confidences - correct, BINS)
        return float(np.abs(gaps).sum() / len(bins))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `nats`: the percentile interval of a bootstrap over blocks of the text.

        Neighbouring losses are correlated, so that whole blocks of 1,000 characters are drawn (a twentieth of a
        shorter text), 2,000 times with a fixed seed.
        """
        places = self.losses.places - self.losses.places.min()
        blocks = places // max(1, min(BLOCK, -(-int(places.max() + 1) // 20)))
        counts = np.bincount(blocks)
        sums = np.bincount(blocks, self.losses.nats)[counts > 0]
        counts = counts[counts > 0]
        rng = np.random.default_rng(0)
        means = np.empty(RESAMPLES)
        for i in range(RESAMPLES):
            drawn = rng.integers(len(sums), size=len(sums))
            means[i] = sums[drawn].sum() / counts[drawn].sum()
        low, high = np.percentile(means, (2.5, 97.5))
        return float(low), float(high)

    @cached_property
    def by_kind(self) -> dict[str, Part]:
        """The characters of each kind that occurs, and the first letters of words."""
        kinds = np.array([KINDS.index(kind_of(c)) for c in self._alphabet])[self._codes]
        letters = kinds <= KINDS.index("upper case")
        inside = letters | self._apostrophes(letters)
        begins = letters & ~np.concatenate([[False], inside[:-1]])
        kinds = np.where(self.losses.known, kinds, KINDS.index("unknown"))
        chosen = {kind: kinds == i for i, kind in enumerate(KINDS)} | {"first letters of words": begins}
        return self._parts({name: mask[self.losses.places] for name, mask in chosen.items()})

    @cached_property
    def by_distance(self) -> dict[str, Part]:
        """The characters by how many were read since the last reset: 1, 2, 3–4, 5–8, …"""
        doublings = np.ceil(np.log2(np.maximum(self.losses.distances, 1))).astype(np.int64)
        doublings[self.losses.distances < 0] = -1
        return self._parts(
            {
                str(2**k) if k < 2 else f"{2 ** (k - 1) + 1}–{2**k}": doublings == k
                for k in range(int(doublings.max()) + 1)
            }
        )

    @property
    def unknown(self) -> tuple[int, float]:
        """How many characters are not in the vocabulary, and all they cost in nats besides −ln p(<unk>)."""
        return int((~self.losses.known[self.losses.places]).sum()), float(self.losses.price.sum())

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values for JSON."""
        low, high = self.interval
        count, nats = self.unknown
        error = self.calibration_error
        return {
            "protocol": self.losses.protocol.name,
            "characters": self.characters,
            "bytes": self.bytes,
            "nats_per_character": self.nats,
            "nats_per_character_95": [low, high],
            "bits_per_character": self.bits,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy(),
            "top5_accuracy": self.accuracy(5),
            "expected_calibration_error": None if math.isnan(error) else error,
            "unknown_characters": count,
            "unknown_nats": nats,
            "by_kind": {name: vars(part) for name, part in self.by_kind.items()},
            "by_distance": {name: vars(part) for name, part in self.by_distance.items()},
        }

    @cached_property
    def _alphabet(self) -> list[str]:
        return sorted(set(self.losses.text))

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        """The place in the alphabet of each character of the text."""
        order = np.array([ord(c) for c in self._alphabet])
        points = np.frombuffer(self.losses.text.encode("utf-32-le", "surrogatepass"), "<u4")
        return np.searchsorted(order, points).astype(np.int64)

    def _apostrophes(self, letters: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The apostrophes between two letters, which belong to a word."""
        marks = np.array([c in "'’" for c in self._alphabet])[self._codes]
        between = np.zeros_like(letters)
        between[1:-1] = letters[:-2] & letters[2:]
        return marks & between

    def _parts(self, masks: dict[str, NDArray[np.bool_]]) -> dict[str, Part]:
        """What is in each mask (N), without empty ones."""
        nats, correct = self.losses.nats, self.losses.ranks == 0
        return {
            name: Part(int(mask.sum()), float(nats[mask].mean()), float(correct[mask].mean()))
            for name, mask in masks.items()
            if mask.any()
        }


def kind_of(character: str) -> str:
    """One of `KINDS`, by the character's Unicode category: marks count as letters, symbols as punctuation."""
    category = unicodedata.category(character)
    if character.isspace():
        return "spaces"
    if category in ("Lu", "Lt"):
        return "upper case"
    return {"L": "other letters", "M": "other letters", "N": "digits"}.get(category[0], "punctuation")
