"""The one exception that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Something the user can put right. The message is one sentence: what, where, how to fix it.

    The command-line programs print it on stderr without a traceback and exit with status 2.
    """


NOTHING = object()
YAML = {None: "null", True: "true", False: "false"}


class OptionError(UsageError, ValueError):
    """What is wrong with the value of the option `name`, such as "must be at least 1"."""

    def __init__(self, name: str, problem: str, value: object = NOTHING) -> None:
        written = YAML[value] if isinstance(value, bool | None) else repr(value)
        super().__init__(name + ("" if value is NOTHING else f"={written[:80]}") + f" {problem}")
        self.name, self.problem, self.value = name, problem, value

    def within(self, section: str) -> OptionError:
        """The same, of an option of `section`."""
        return OptionError(f"{section}.{self.name}" if self.name else section, self.problem, self.value)


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Make a UsageError about the option or section `what` of whatever goes wrong.

    For calls of other people's code with the user's values: what it raises for a value that it did not expect can be
    anything.
    """
    try:
        yield
    except OptionError as error:
        raise error.within(what) from None
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type. PyTorch adds its C++ frames below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
