"""From a section of the settings to the object that it describes."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from charlm.data.options import DataOptions
from charlm.errors import UsageError, as_usage_error
from charlm.text.corpus import Corpus


def instantiate(name: str, node: Any, given: Collection[str] = ()) -> Any:
    """The object that `node`, the section `name`, describes by ``_target_`` and arguments; None for None.

    `given` holds the names of the options that the user set: see `known_arguments`. Raises UsageError, naming the
    section, if the object cannot be built.
    """
    if node is None:
        return None
    if not isinstance(node, dict):
        raise UsageError(f"{name}={str(node)[:80]} must be a section with a _target_: see conf/")
    if "_target_" in node:
        node = known_arguments(name, node, given)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        with as_usage_error(name):
            raise cause or error from None


def resolve_target(name: str, target: object) -> Any:
    """The class or function that ``_target_`` names. Raises UsageError if it cannot be imported."""
    try:
        return hydra.utils.get_object(str(target))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UsageError(f"{name}._target_={str(target)[:80]!r} cannot be imported: {reason}") from None


def known_arguments(name: str, node: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """`node` without arguments that its target does not take, as when only ``optimizer._target_`` was changed.

    Raises UsageError if the user set one of them.
    """
    parameters = signature(resolve_target(name, node["_target_"]))
    if parameters is None:
        return node
    unknown = [key for key in node if not key.startswith("_") and key not in parameters]
    for key in unknown:
        if any(option == f"{name}.{key}" or option.startswith(f"{name}.{key}.") for option in given):
            target = str(node["_target_"]).rpartition(".")[2]
            raise UsageError(f"{name}.{key}: {target} has no option {key}; it takes {', '.join(parameters)}")
    return {key: value for key, value in node.items() if key not in unknown}


def signature(target: Any, *, evaluate: bool = False) -> dict[str, inspect.Parameter] | None:
    """The parameters of a class or function by name, or None where it takes any.

    A constructor with ``**options`` passes them on to that of the next class. `evaluate` makes annotations objects.
    """
    found: dict[str, inspect.Parameter] = {}
    classes = target.__mro__ if inspect.isclass(target) else ()
    for function in [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)] or [target]:
        try:
            parameters = inspect.signature(function, eval_str=evaluate).parameters
        except (TypeError, ValueError):
            return None
        kinds = {parameter.kind for parameter in parameters.values()}
        named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = named | found
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return {name: parameter for name, parameter in found.items() if name != "self"}
    return None


def build_corpus(options: DataOptions) -> Corpus:
    """The text that ``data.corpus`` describes."""
    corpus = instantiate("data.corpus", options.corpus)
    if not isinstance(corpus, Corpus):
        raise UsageError("data.corpus is not a text: it needs a _target_ of charlm.text.sources")
    return corpus
