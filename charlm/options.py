"""Checks of option values: each returns the value, or raises UsageError naming the field and what it takes."""

from __future__ import annotations

from charlm.errors import UsageError


def whole(name: str, value: object, least: int) -> int:
    """`value` if it is a whole number of at least `least`; raises UsageError naming the field."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value} must be a whole number of at least {least}")
    return value


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`; raises UsageError naming the field."""
    if value not in choices:
        raise UsageError(f"{name}={value} must be one of {', '.join(choices)}")
    return str(value)


def flag(name: str, value: object) -> bool:
    """`value` if it is true or false; raises UsageError naming the field."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value} must be true or false")
    return value
