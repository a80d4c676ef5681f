"""A fold that keeps every intermediate result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

S = TypeVar("S")
X = TypeVar("X")


def scan(step: Callable[[S, X], S], start: S, sequence: Iterable[X]) -> list[S]:
    """Every intermediate result of folding `step` over `sequence`: Theano's `scan` in four lines.

    ``scan(operator.add, 0, range(5))`` is ``[0, 1, 3, 6, 10]``.
    """
    results, previous = [], start
    for element in sequence:
        previous = step(previous, element)
        results.append(previous)
    return results
