"""Passages of a text that surprise a model more than its calibration text does: wrong case, other languages, noise.

A passage scores the sum over its characters of their nats less an allowance, the mean and one standard deviation of the
calibration text's; the passages are the maximal ones by that score (Ruzzo and Tompa, "A linear time algorithm for
finding all maximal scoring subsequences", ISMB 1999), of whatever length. benchmarks/anomalies.py has what it finds.
At equal false alarms per character, sums over windows of one length find either short corruptions or long ones; sums
over several lengths, each with a threshold of its own, and a likelihood ratio of exponential distributions over all
lengths found no more than this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError
from charlm.options import Positive, checked
from charlm.output import counted
from charlm.text.characters import visible
from charlm.text.vocab import code_points

Nats = NDArray[np.float64]

PER = 10_000  # characters that a rate of false alarms is of
CONTEXT = 30  # characters shown on either side of a passage
LONGEST_WORD = 40  # a run of letters longer than this is no word: Chinese has no blanks


@dataclass(frozen=True)
class Calibration:
    """The score above which a passage is reported, and what it was chosen by."""

    rate: float
    """False alarms per 10,000 characters that were asked for."""
    characters: int
    """Scored characters of the calibration text."""
    false_alarms: int
    """Passages of the calibration text that score more than the threshold."""
    allowance: float
    """Nats per character that add nothing to a score."""
    threshold: float
    """Nats."""


@dataclass(frozen=True)
class Anomaly:
    """A surprising passage, ``text[start:end]`` of the text as the model reads it, extended to whole words."""

    start: int
    end: int
    line: int
    """From 1."""
    column: int
    """From 1, in characters."""
    text: str
    before: str
    after: str
    nats: float
    """Sum over the passage."""
    score: float
    """Nats above the allowance, of the most surprising stretch in the passage."""


@dataclass(frozen=True)
class Anomalies:
    """The surprising passages of a text, the most surprising first. `characters` of it were scored."""

    characters: int
    calibration: Calibration
    found: tuple[Anomaly, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | {"found": list(values["found"])}

    def lines(self, most: int = 20) -> Iterator[str]:
        """Lines for a terminal, with the `most` surprising passages and the false alarms to expect."""
        passages = counted(len(self.found), "surprising passage")
        alarms = self.calibration.rate * self.characters / PER
        yield (
            f"{passages} in {self.characters:,} characters; a text like the calibration text would have about "
            f"{alarms:.1f} ({self.calibration.rate:g} per {PER:,} characters)"
        )
        for each in self.found[:most]:
            place = f"line {each.line:,}, column {each.column:,}"
            yield f"  {place}: score {each.score:.1f}, {each.nats:.1f} nats in {counted(len(each.text), 'character')}"
            yield f"    {visible(each.before)}»{visible(shortened(each.text))}«{visible(each.after)}"
        if len(self.found) > most:
            yield f"  and {len(self.found) - most:,} more"


def shortened(text: str, most: int = 200) -> str:
    """`text`, or its beginning and end if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


@checked
def calibrate(nats: Nats, rate: Positive = 1.0) -> Calibration:
    """The threshold that leaves at most `rate` passages per 10,000 characters of a text without anomalies.

    `nats` are those of its characters after the first, float64 (characters,). It should be held-out text: a model finds
    its training text less surprising. The rate on another text varies as counts do: by about the square root of the
    number of false alarms in the calibration text. Raises UsageError where the text is too short for even one.
    """
    _check(nats)
    allowed = calibrated_by(len(nats), rate)
    allowance = float(nats.mean() + nats.std())
    scores = sorted((score for _, _, score in maximal_segments(nats - allowance)), reverse=True)
    threshold = scores[allowed] if len(scores) > allowed else 0.0
    return Calibration(rate, len(nats), sum(score > threshold for score in scores), allowance, threshold)


def calibrated_by(characters: int, rate: float) -> int:
    """How many false alarms there may be in `characters` of calibration text. Raises UsageError if that is none."""
    allowed = int(rate * characters / PER + 1e-9)
    if allowed < 1:
        raise UsageError(
            f"a rate of {rate:g} false alarms per {PER:,} characters cannot be measured on {characters:,} characters: "
            f"calibrate on {int(np.ceil(PER / rate)):,} or more, or ask for a higher rate"
        )
    return allowed


def find_anomalies(nats: Nats, text: str, calibration: Calibration) -> Anomalies:
    """The passages of `text` that score more than the threshold, merged where they touch once words are completed.

    `nats` are those of the characters after the first, float64 (len(text) - 1,), as `LanguageModel.score_each` gives
    them: ``nats[i]`` is that of ``text[i + 1]``. `text` is what the model read, normalised. Raises ValueError where
    their sizes differ, and UsageError for losses that are not finite.
    """
    _check(nats)
    if len(nats) != max(len(text) - 1, 0):
        raise ValueError(f"{len(nats)} losses for a text of {len(text)} characters, after the first")
    merged: list[tuple[int, int, float]] = []
    for first, last, score in maximal_segments(nats - calibration.allowance):
        if score > calibration.threshold:
            start, end = _complete_words(text, first + 1, last + 1)
            if merged and start <= merged[-1][1]:
                before = merged.pop()
                start, end, score = min(start, before[0]), max(end, before[1]), max(score, before[2])
            merged.append((start, end, score))
    newlines = np.flatnonzero(code_points(text) == ord("\n"))
    found = [_anomaly(nats, text, newlines, *passage) for passage in merged]
    found.sort(key=lambda each: (-each.score, each.start))
    return Anomalies(len(nats), calibration, tuple(found))


def maximal_segments(values: Nats) -> list[tuple[int, int, float]]:
    """The maximal scoring segments of `values`, (start, end, sum), in order; their sums are positive.

    The first is the segment with the largest sum, shortest where several are equal; the others are those of what
    remains to its left and right, and so on.
    """
    done: list[tuple[int, int, float]] = []
    stack: list[tuple[int, int, float, float]] = []  # start, end, total before it, total at its end
    total = 0.0
    for i, value in enumerate(values.tolist()):
        before, total = total, total + value
        if value <= 0:
            continue
        start, end, low, high = i, i + 1, before, total
        while True:
            at = next((k for k in range(len(stack) - 1, -1, -1) if stack[k][2] < low), None)
            if at is None:  # nothing before it can ever be joined to what comes: final
                done += [(s, e, h - lo) for s, e, lo, h in stack]
                stack = [(start, end, low, high)]
                break
            if stack[at][3] >= high:
                stack.append((start, end, low, high))
                break
            start, low = stack[at][0], stack[at][2]
            del stack[at:]
    return done + [(s, e, h - lo) for s, e, lo, h in stack]


def _check(nats: Nats) -> None:
    if not np.isfinite(nats).all():
        raise UsageError("the model's losses are not all finite: anomalies cannot be found with it")


def _complete_words(text: str, start: int, end: int) -> tuple[int, int]:
    """`start` and `end` moved to the ends of words that they cut, and then past blanks at the passage's ends."""
    first, last = start, end
    while first > 0 and text[first].isalnum() and text[first - 1].isalnum() and start - first < LONGEST_WORD:
        first -= 1
    while last < len(text) and text[last - 1].isalnum() and text[last].isalnum() and last - end < LONGEST_WORD:
        last += 1
    start, end = first if start - first < LONGEST_WORD else start, last if last - end < LONGEST_WORD else end
    passage = text[start:end]
    if passage.isspace():
        return start, end
    return start + len(passage) - len(passage.lstrip()), end - (len(passage) - len(passage.rstrip()))


def _anomaly(nats: Nats, text: str, newlines: NDArray[np.intp], start: int, end: int, score: float) -> Anomaly:
    line = int(np.searchsorted(newlines, start))
    column = start - (int(newlines[line - 1]) if line else -1)
    total = float(nats[max(start - 1, 0) : end - 1].sum())  # the first character has no loss
    before, after = text[max(start - CONTEXT, 0) : start], text[end : end + CONTEXT]
    return Anomaly(start, end, line + 1, column, text[start:end], before, after, total, score)
