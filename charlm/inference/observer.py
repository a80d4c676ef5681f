"""Who is told about the progress of an evaluation: a progress bar, a notebook, or nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def nothing(*arguments: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Observer:
    """`progress` is called with what is done and the total, `notify` with what is done now, `warn` with warnings.

    `begin` is called before what may take minutes.
    """

    progress: Callable[[int, int], None] = nothing
    notify: Callable[[str], None] = nothing
    begin: Callable[[str], None] = nothing
    warn: Callable[[str], None] = nothing


NOBODY = Observer()
