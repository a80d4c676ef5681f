"""The one exception that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Something the user can put right. The message is one sentence: what, where, how to fix it.

    The command-line programs print it on stderr without a traceback and exit with status 2.
    """


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Make a UsageError about the option `what` of whatever goes wrong.

    For calls of other people's code with the user's values: what it raises for a value that it did not expect can be
    anything.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]  # PyTorch adds its C++ frames below
        raise UsageError(f"{what}: {reason[0]}") from error
