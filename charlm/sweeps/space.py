"""What the trials of a search have in common, and whether every value in its space is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from charlm.errors import UsageError
from charlm.run.build import check_size
from charlm.run.compose import compose_job
from charlm.run.search_options import Range, Space, number
from charlm.run.suggest import option_of

LETTERS = 26  # of a text that is not read yet


def fixed(overrides: Sequence[str], space: Space) -> list[str]:
    """Those of a search's `overrides` with which every trial is composed, to train.

    Raises UsageError for an option that is in `space` as well.
    """
    kept = []
    for override in overrides:
        name = option_of(override)
        if name in space:
            more = f"leave it out, or {name} with 'search.space={{{name}: null}}'"
            raise UsageError(f"{override} fixes what search.space searches: {more}")
        if name not in ("task", "search") and not name.startswith("search."):
            kept.append(override)
    if compose_job(kept, Path())[0].task != "train":  # an experiment says so
        kept.append("task=train")
    return kept


def check_space(base: Sequence[str], space: Space) -> None:
    """Raise UsageError for an option that does not exist, or a value that no trial can have.

    A value may need others: it is tried alone, then with the first values of the other options, then with the last.
    """
    ends = {
        name: [number(values, values.low), number(values, values.high)] if isinstance(values, Range) else values
        for name, values in space.items()
    }
    for name, values in ends.items():
        if name in ("trainer.devices", "trainer.num_nodes"):
            raise UsageError(f"search.space.{name}: each trial trains in one process; leave it out")
        for value in values:
            others = {which: [f"{o}={v[which]}" for o, v in ends.items() if o != name] for which in (0, -1)}
            tried = (problem([*base, *more, f"{name}={value}"]) for more in ([], others[0], others[-1]))
            if (first := next(tried)) and all(tried):
                raise UsageError(f"search.space: {first}")


def with_settings(base: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """The overrides of a trial."""
    return [*base, *(f"{name}={value}" for name, value in chosen.items())]


def problem(overrides: Sequence[str]) -> str | None:
    """Why these settings are refused; None if they are not."""
    try:
        settings, _ = compose_job(overrides, Path())
        check_size(settings.model, LETTERS, None)
    except UsageError as error:
        return str(error)
    return None
