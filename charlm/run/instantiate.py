"""From a section of the settings to the object that it describes."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Collection
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from charlm.data.options import DataOptions
from charlm.errors import OptionError, UsageError, as_usage_error, first_line
from charlm.run.settings import Settings
from charlm.run.suggest import option_names
from charlm.text.corpus import Corpus

INTERNAL = {"params", "optimizer", "vocab_size", "folder", "config", "sweep"}  # arguments that charlm fills in


def instantiate(name: str, node: Any) -> Any:
    """The object that `node`, the section `name`, describes by ``_target_`` and arguments; None for None.

    Raises UsageError, naming the section, if the object cannot be built.
    """
    if node is None:
        return None
    try:
        # Hydra would resolve interpolations again, twice: here they are text, perhaps of a checkpoint from anybody.
        return hydra.utils.instantiate(escape(escape(node)), _convert_="all")
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        with as_usage_error(name):
            raise cause or error from None


def escape(value: Any) -> Any:
    """`value` with every ``${`` escaped for OmegaConf: the config in a checkpoint is already resolved."""
    if isinstance(value, dict):
        return {key: escape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value


def resolve_target(name: str, target: object) -> Any:
    """The class or function that ``_target_`` names. Raises UsageError if it cannot be imported."""
    try:
        return pkgutil.resolve_name(str(target))
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, AttributeError):
            close = difflib.get_close_matches(str(error.name), dir(error.obj), 1)
            reason += f", did you mean {close[0]}?" if close else ""
        raise UsageError(f"{name}._target_={str(target)[:80]!r} cannot be imported: {reason}") from None


def with_known_arguments(settings: Settings, given: Collection[str]) -> Settings:
    """`settings` with only such arguments as their classes take. `given` names the options that the user set.

    Where a config or the user changed a ``_target_``, the options of the class in ``conf/`` are dropped. Any other
    argument that a class does not take raises OptionError.
    """

    def known(name: str, node: dict[str, Any] | None) -> dict[str, Any] | None:
        return known_arguments(name, node, given) if node and "_target_" in node else node

    schedule = {"scheduler": known("schedule.scheduler", settings.schedule.scheduler)}
    return settings.model_copy(
        update={
            **{name: known(name, getattr(settings, name)) for name in ("model", "optimizer", "logger")},
            "data": settings.data.model_copy(update={"corpus": known("data.corpus", settings.data.corpus)}),
            "schedule": settings.schedule.model_copy(update=schedule),
            "callbacks": {name: known(f"callbacks.{name}", node) for name, node in settings.callbacks.items()},
        }
    )


def known_arguments(name: str, node: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The section `name` for `with_known_arguments`."""
    target = resolve_target(name, node["_target_"])
    parameters = signature(target)
    if parameters is None or (name == "model" and not inspect.isclass(target)):  # `build_network` refuses the latter
        return node
    taken = [*parameters, "window"] if name == "model" else list(parameters)  # see `build_network`
    foreign = [key for key in node if not str(key).startswith("_") and key not in taken]
    for key in foreign:
        typed = any(f"{option}.".startswith(f"{name}.{key}.") for option in given)
        if typed or f"{name}.{key}" not in option_names():
            close = difflib.get_close_matches(key, taken, 1)
            options = ", ".join(option for option in taken if option not in INTERNAL) or "no options"
            more = f": did you mean {name}.{close[0]}?" if close else f", which takes {options}"
            raise OptionError(f"{name}.{key}", f"is not an option of {str(node['_target_']).rpartition('.')[2]}{more}")
    return {key: value for key, value in node.items() if key not in foreign}


def signature(target: Any, *, evaluate: bool = False) -> dict[str, inspect.Parameter] | None:
    """The parameters of a class or function by name, or None where it takes any.

    A `checked` constructor with ``**options`` passes them on to that of the next class; about another one we cannot
    know. `evaluate` turns annotations into objects.
    """
    found: dict[str, inspect.Parameter] = {}
    classes = target.__mro__ if inspect.isclass(target) else ()
    for function in [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)] or [target]:
        try:
            parameters = inspect.signature(function, eval_str=evaluate).parameters
        except (TypeError, ValueError, NameError):  # the latter for a type that is imported for type checking only
            return None
        kinds = {parameter.kind for parameter in parameters.values()}
        named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = named | found
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return {name: parameter for name, parameter in found.items() if name != "self"}
        if not hasattr(function, "__wrapped__"):
            return None
    return None


def build_corpus(options: DataOptions) -> Corpus:
    """The text that ``data.corpus`` describes."""
    corpus = instantiate("data.corpus", options.corpus)
    if not isinstance(corpus, Corpus):
        what = f"{Corpus.__module__}.{Corpus.__name__}, not {type(corpus).__name__}"
        raise UsageError(f"data.corpus must be a function that returns a {what}: see charlm/text/sources.py")
    return corpus
