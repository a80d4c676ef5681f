"""Checks of option values: each returns the value, or raises UsageError naming the field and what it takes."""

from __future__ import annotations

import math

from charlm.errors import UsageError


def check_int(name: str, value: object, least: int, most: float = math.inf) -> int:
    """`value` if it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise UsageError(f"{name}={value} must be a whole number of at least {least}{limit}")
    return value


def check_number(name: str, value: object) -> float:
    """`value` if it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{name}={value} must be a number of at least 0")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name}={value} must be one of {', '.join(choices)}")
    return str(value)


def check_bool(name: str, value: object) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value} must be true or false")
    return value
