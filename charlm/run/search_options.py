"""What ``task=search`` searches: the options of a search, and its space of settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import model_validator

from charlm.checkpoint.paths import quoted
from charlm.errors import OptionError
from charlm.options import Count, Options, Positive, PositiveInt, Seed

POPULATION = "population"
CHANGEABLE = (  # what can change while a model trains, besides dropout
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.betas",
    "optimizer.eps",
    "objective.l2",
    "trainer.gradient_clip_val",
)
DIGITS = 3  # significant digits of the numbers that are tried
RANGE = ("low", "high", "log", "step")


class Range(NamedTuple):
    """Numbers from `low` to `high`: whole ones if both are, in steps of `step`, or evenly over the logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the numbers are integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


Choices = list[str]  # as they are written on the command line
Space = dict[str, Range | Choices]


class SearchOptions(Options):
    """The search of ``task=search`` for the settings with the lowest loss."""

    space: dict[str, Any] | None = None
    """Options by name, each with a list of values, or a range: low and high, and log: true or a step if need be."""
    trials: PositiveInt = 20
    """Runs, those that were pruned included. A search that is resumed can be given more."""
    minutes: Positive | None = None
    """Minutes after which no further trial begins; null: no limit."""
    engine: Literal["optuna", "ray"] = "optuna"
    """Where trials run: in this process (and others that share the search), or on a Ray cluster, by Ray Tune."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How settings are drawn: by what worked so far (a tree-structured Parzen estimator), or at random."""
    pruner: Literal["median", "halving", "population"] | None = "median"
    """Which trials end early: those above the median, or not in the best third (halving); or population (with Ray)."""
    warmup: Count = 2
    """Validations (population: epochs) at the beginning that decide nothing, because much may still change."""
    startup: Count = 5
    """Finished trials before the sampler and the pruner learn from them."""
    seed: Seed = 0
    """Seed of the sampler."""

    @model_validator(mode="after")
    def _space_is_valid(self) -> SearchOptions:
        space = self.parameters()
        if self.pruner == POPULATION:
            if self.engine != "ray":
                raise OptionError("pruner", "needs search.engine=ray", self.pruner)
            if space and not any(map(changeable, space)):
                raise OptionError(
                    "pruner", f"needs one of {', '.join(CHANGEABLE)} or a dropout in search.space", self.pruner
                )
            if self.trials < 2:
                raise OptionError("trials", "must be at least 2 for a population", self.trials)
        return self

    def parameters(self) -> Space:
        """The range or the choices of each option by its full name. Raises OptionError for one that is empty."""
        return {name: _parameter(name, value) for name, value in _flat(self.space or {})}


def _flat(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options in `section`, which may be nested as in conf/; one that is null is left out."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and not value.keys() & set(RANGE):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, value


def _parameter(name: str, value: Any) -> Range | Choices:
    place = f"space.{name}"
    if isinstance(value, list):
        choices = [written(choice) for choice in value]
        if len(choices) < 2:
            raise OptionError(place, "must have at least two values; a single one is set as any other option", value)
        if len(set(choices)) < len(choices):
            raise OptionError(place, "has a value twice", value)
        return choices
    if not isinstance(value, dict):
        raise OptionError(place, "must be a list such as [1,2], or a range such as {low: 1, high: 8}", value)
    if wrong := [key for key in value if key not in RANGE]:
        raise OptionError(f"{place}.{wrong[0]}", f"is not part of a range, which has {', '.join(RANGE)}")
    for end in ("low", "high"):
        if end not in value:
            raise OptionError(f"{place}.{end}", "is missing")
    numbers = {key: value[key] for key in ("low", "high", "step") if value.get(key) is not None}
    for key, number in numbers.items():
        if type(number) not in (int, float) or not math.isfinite(number):
            raise OptionError(f"{place}.{key}", "must be a number", number)
    if type(value.get("log", False)) is not bool:
        raise OptionError(f"{place}.log", "must be true or false", value["log"])
    found = Range(**{**value, **numbers})
    if found.high <= found.low:
        raise OptionError(f"{place}.high", f"must be more than low={found.low}", found.high)
    if found.log and found.low <= 0:
        raise OptionError(f"{place}.low", "must be more than 0 with log: true", found.low)
    if found.step is not None:
        if found.log:
            raise OptionError(f"{place}.step", "cannot be combined with log: true", found.step)
        if not 0 < found.step <= found.high - found.low:
            raise OptionError(f"{place}.step", "must be more than 0, and at most high - low", found.step)
        steps = math.floor((found.high - found.low) / found.step + 1e-9)
        found = found._replace(high=found.low + steps * found.step)  # the highest that is reached
    return found


def changeable(name: str) -> bool:
    """Whether an option can change while a model trains."""
    return name in CHANGEABLE or name.endswith("dropout")


def written(value: Any) -> str:
    """`value` as it is written on the command line."""
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if not isinstance(value, str):
        return repr(value)
    try:
        plain = OverridesParser.create().parse_override(f"x={value}").value() == value
    except HydraException:
        plain = False
    return value if plain else quoted(value)


def number(values: Range, value: float) -> str:
    """A number in the range `values` as it is written on the command line, with few digits."""
    if values.whole:
        return str(int(value))
    rounded = float(f"{value:.{DIGITS if values.step is None else 12}g}")
    return repr(min(max(rounded, float(values.low)), float(values.high)))
