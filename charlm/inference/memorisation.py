"""How much of a sample is copied from the training text: verbatim matches and n-grams that occur there.

One suffix array of both texts (pydivsufsort, with Y. Mori's libdivsufsort in C) gives the longest match at every
position of the sample, from which everything here follows. 10 MB take 1.3 s; hashing their n-grams in NumPy took 4.5 s
for the shares alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError
from charlm.options import PositiveInt, checked
from charlm.output import counted
from charlm.text.characters import visible
from charlm.text.vocab import code_points

Ints = NDArray[np.int64]

NGRAMS = (2, 4, 8, 16, 32, 64)
LEAST = 32  # the 107,146 characters of held-out Nietzsche have no longer match than 31 with the 493,747 before them


@dataclass(frozen=True)
class Match:
    """A passage of the sample that the training text contains, too; it cannot be extended to either side."""

    text: str
    start: int
    """Offset in the sample, in characters."""
    offset: int
    """Offset in the training text, in characters; if the passage is there several times, one of its places."""
    line: int
    """Line of the training text, from 1."""

    @property
    def length(self) -> int:
        """Characters."""
        return len(self.text)


@dataclass(frozen=True)
class Memorisation:
    """What of a sample occurs in the training text. Texts that were never seen have long matches, too: compare."""

    characters: int
    training_characters: int
    longest: Match | None
    """None where the two texts have no character in common."""
    least: int
    matches: tuple[Match, ...]
    """Matches of at least `least` characters, none overlapping another, longest first."""
    covered: float
    """Share of the sample's characters that are in any match of at least `least` characters."""
    ngrams: dict[int, float]
    """For each n, the share of the sample's n-grams, counted as often as they occur, that the training text has."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        for match in [values["longest"], *values["matches"]]:
            if match is not None:
                match["length"] = len(match["text"])
        return values | {"matches": list(values["matches"]), "ngrams": {str(n): v for n, v in self.ngrams.items()}}

    def lines(self, most: int = 10, width: int = 72) -> Iterator[str]:
        """Lines for a terminal, with the `most` longest matches, each cut to `width` characters."""
        if self.longest is None:
            yield "no character of the sample occurs in the training text"
            return
        yield f"longest match  {_described(self.longest)}"
        shares = "  ".join(f"{n}: {share:.1%}" for n, share in self.ngrams.items())
        if shares:
            yield f"n-grams found  {shares}"
        count = f"{len(self.matches):,} match{'' if len(self.matches) == 1 else 'es'}"
        yield f"copied         {self.covered:.1%} of the sample, {count} of at least {self.least} characters"
        for match in self.matches[:most]:
            yield f"  {_described(match)}"
            yield f"    {visible(match.text[:width])}{'…' if match.length > width else ''}"
        if len(self.matches) > most:
            yield f"  and {len(self.matches) - most:,} more"


def _described(match: Match) -> str:
    where = f"at {match.start:,} of the sample, line {match.line:,} of the training text (offset {match.offset:,})"
    return f"{counted(match.length, 'character')} {where}"


@checked
def memorisation(sample: str, train: str, least: PositiveInt = LEAST) -> Memorisation:
    """Compare `sample` with the training text `train`, both as the model reads them.

    Needs some 10 bytes of memory a character of the training text. Raises UsageError without pydivsufsort.
    """
    lengths, places = longest_matches(sample, train)
    newlines = np.flatnonzero(code_points(train) == ord("\n"))

    def match(start: int) -> Match:
        offset = int(places[start])
        line = int(np.searchsorted(newlines, offset)) + 1
        return Match(sample[start : start + int(lengths[start])], start, offset, line)

    longest = match(int(lengths.argmax())) if lengths.any() else None
    matches = tuple(match(start) for start in _separate(lengths, least))
    ngrams = {n: float((lengths[: len(sample) - n + 1] >= n).mean()) for n in NGRAMS if n <= len(sample)}
    return Memorisation(len(sample), len(train), longest, least, matches, _covered(lengths, least), ngrams)


def longest_matches(sample: str, train: str) -> tuple[Ints, Ints]:
    """The length of the longest match with `train` that starts at each character of `sample`, and its place there.

    Both int64 (len(sample),). Where there is none, the length is 0 and the place means nothing.
    """
    joined, border = _joined(train, sample), len(train)
    suffixes = _divsufsort(joined)
    rows = np.flatnonzero(suffixes > border)  # suffixes of the sample, in lexical order
    starts = suffixes[rows].astype(np.int64) - border - 1
    # The separator sorts first and has nothing in common with anything.
    before = suffixes[rows - 1].astype(np.int64)
    after = np.append(suffixes, np.int32(border))[rows + 1].astype(np.int64)
    one = _nearest(_common(joined, starts, before, border), before, border)
    flipped = _nearest(_common(joined, starts, after, border)[::-1], after[::-1], border)
    other = flipped[0][::-1], flipped[1][::-1]
    lengths, places = np.empty(len(sample), np.int64), np.empty(len(sample), np.int64)
    lengths[starts] = np.maximum(one[0], other[0])
    places[starts] = np.where(one[0] >= other[0], one[1], other[1])
    return lengths, places


def _joined(train: str, sample: str) -> NDArray[Any]:
    """Both texts in the smallest integers that keep the order of code points, from 1, with a 0 in between."""
    parts = code_points(train), code_points(sample)
    seen = np.zeros(max((int(codes.max()) for codes in parts if codes.size), default=0) + 1, bool)
    for codes in parts:
        seen[codes] = True
    ids = seen.cumsum()
    dtype = next(dtype for dtype in (np.uint8, np.uint16, np.int32) if ids[-1] <= np.iinfo(dtype).max)
    ids = ids.astype(dtype)
    return np.concatenate([ids[parts[0]], np.zeros(1, dtype), ids[parts[1]]])


def _divsufsort(array: NDArray[Any]) -> NDArray[np.signedinteger[Any]]:
    suffixes: NDArray[np.signedinteger[Any]] = suffix_array_library().divsufsort(array)
    return suffixes


def suffix_array_library() -> Any:
    """The package pydivsufsort. Raises UsageError without it."""
    try:
        return importlib.import_module("pydivsufsort")
    except ImportError:
        raise UsageError('memorisation needs the package pydivsufsort: pip install -e ".[evaluate]"') from None


def _common(joined: NDArray[Any], starts: Ints, others: Ints, border: int) -> Ints:
    """The length of the common prefix of each suffix of the sample and its neighbour, which may be either text's.

    A suffix that is one character shorter has at most one character less in common with its own neighbour (Kasai et
    al. 2001), so that the comparisons in all are as many as the sample's characters, and not their square.
    """
    view, first, length = joined.data, border + 1, 0
    by_start = np.empty_like(others)
    by_start[starts] = others
    found = np.empty(len(starts), np.int64)
    for start, other in enumerate(by_start.tolist()):
        here = first + start
        most = len(joined) - max(here, other)
        while length < most and view[here + length] == view[other + length]:
            length += 1
        found[start] = length
        length = max(length - 1, 0)
    return found[starts]


def _nearest(common: Ints, neighbours: Ints, border: int) -> tuple[Ints, Ints]:
    """For each suffix of the sample, in order: what it shares with the last suffix of the training text before it.

    Where its neighbour is of the sample, too, that one's answer holds as far as the two agree.
    """
    lengths, places = np.empty_like(common), np.empty_like(common)
    length = place = 0
    for row, (shared, neighbour) in enumerate(zip(common.tolist(), neighbours.tolist(), strict=True)):
        length, place = (shared, neighbour) if neighbour <= border else (min(shared, length), place)
        lengths[row], places[row] = length, place
    return lengths, places


def _separate(lengths: Ints, least: int) -> Sequence[int]:
    """The starts of matches that no other overlaps, longest first."""
    before = np.append(0, lengths[:-1]) if lengths.size else lengths
    candidates = np.flatnonzero((lengths >= least) & (before <= lengths))  # else it extends to the left
    taken = np.zeros(len(lengths), bool)
    chosen = []
    for start in candidates[np.argsort(-lengths[candidates], kind="stable")].tolist():
        end = start + int(lengths[start])
        if not taken[start] and not taken[end - 1]:  # enough: all that is taken is at least as long
            taken[start:end] = True
            chosen.append(start)
    return chosen


def _covered(lengths: Ints, least: int) -> float:
    starts = np.flatnonzero(lengths >= least)
    changes = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, starts + lengths[starts], -1)
    return float((changes.cumsum()[:-1] > 0).mean()) if lengths.size else 0.0
