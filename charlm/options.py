"""How options are declared: once, where they are used, as typed fields or arguments that pydantic checks.

An annotation carries the type and the range, its description one sentence with the unit. Everything else that knows
an option (messages, ``python train.py --help``, ``docs/options.md``) reads it from there. Checks are strict: ``true``
is not a number and ``"8"`` is not one either.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, validate_call

from charlm.errors import OptionError

P = ParamSpec("P")
R = TypeVar("R")

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)
]  # as in name=2024
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Options(BaseModel):
    """A section of options. The docstring below a field is its description."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise option_error(error) from None


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of `function` by their annotations. A wrong one raises OptionError."""
    validated, names = validate_call(config=STRICT)(function), list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return validated(*arguments, **options)
        except ValidationError as error:
            raise option_error(error, names) from None

    return call


MESSAGES = {
    "extra_forbidden": "is not an option",
    "unexpected_keyword_argument": "is not an option",
    "unexpected_positional_argument": "is one argument too many",
    "missing": "is missing",
    "missing_argument": "is missing",
    "missing_keyword_only_argument": "is missing",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "model_type": "must be a section of options",
    "model_attributes_type": "must be a section of options",
    "dict_type": "must be a section of options",
    "list_type": "must be a list in brackets",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
}


BRANCHES = ("int", "float", "str", "constrained-int", "constrained-float")  # how pydantic names the parts of a union


def option_error(error: ValidationError, names: Sequence[str] = ()) -> OptionError:
    """The first problem as a sentence that starts with the option's name. `names` are those of positional arguments."""
    first, *others = error.errors(include_url=False)
    name = _option_name(first["loc"], names)
    cause = first.get("ctx", {}).get("error")  # raised by a check of our own
    if isinstance(cause, OptionError):
        return cause.within(name) if name else cause
    problem = MESSAGES.get(first["type"])
    if problem is None:
        return OptionError(name, f"must {first['msg'].removeprefix('Input should ')}", first["input"])
    if not problem.startswith("must"):
        return OptionError(name, problem)
    problem = problem.format(**first.get("ctx", {}))
    for other in others:  # of a union, as in: must be an integer, or 'auto'
        more = MESSAGES.get(other["type"], "").format(**other.get("ctx", {})).removeprefix("must be ")
        if more and more not in problem and _option_name(other["loc"], names) == name:
            problem += f", or {more}"
    return OptionError(name, problem, first["input"])


def _option_name(loc: Sequence[int | str], names: Sequence[str]) -> str:
    """The name of the option at `loc`. pydantic names the branch of a union, too: "int", "function-after[…]"."""
    place = [str(part) for part in loc]
    if place and isinstance(loc[0], int) and loc[0] < len(names):
        place[0] = names[loc[0]]
    return ".".join(part for part in place if part not in BRANCHES and "[" not in part)
