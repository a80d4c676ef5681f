"""Checks of a network's arguments. Each raises ValueError that names the argument and what it takes."""

from __future__ import annotations

# A file cannot ask for more; the other sizes show in its weights.
MOST = {"layers": 1_000, "window": 10_000}


def check_sizes(**sizes: object) -> None:
    """Raise ValueError for a size that is not a whole number of at least 1, and at most as in `MOST`."""
    for name, size in sizes.items():
        if isinstance(size, int) and size > MOST.get(name, size):
            raise ValueError(f"{name} must be at most {MOST[name]:,}, not {size:,}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")


def check_probabilities(**probabilities: object) -> None:
    """Raise ValueError for a probability outside [0, 1)."""
    for name, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise ValueError(f"{name} must be a probability of at least 0 and below 1, not {p!r}")


def check_choice(choices: tuple[str, ...], **values: object) -> None:
    """Raise ValueError for a value that is not one of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_flags(**flags: object) -> None:
    """Raise ValueError for a flag that is neither true nor false."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name} must be true or false, not {flag!r}")
