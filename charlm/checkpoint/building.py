"""From a network's specification, ``_target_`` and plain keyword arguments, to the network."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from charlm.errors import UsageError, as_usage_error
from charlm.models.network import Network
from charlm.models.sequence import Sequence
from charlm.models.windowed import Windowed

FAMILIES = "charlm.models"


def resolve_class(target: object, within: Iterable[str]) -> Any:
    """The public class or function that `target` names, if a module of the packages `within` defines it; else None.

    Nothing that such a module merely imports: ``charlm.text.sources.os.system`` must not be reached.
    """
    module, _, name = str(target).rpartition(".")

    def inside(path: object) -> bool:
        return any(f"{path}.".startswith(f"{package}.") for package in within)

    if not inside(module) or name.startswith("_") or not all(part.isidentifier() for part in module.split(".")):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if inside(getattr(found, "__module__", None)) else None


def build_network(spec: Mapping[str, Any], vocab_size: int) -> Network:
    """Make a network from its specification: ``_target_`` and plain keyword arguments.

    With ``window``, an argument that any family takes, it predicts only after so many characters (see `Windowed`).
    Raises UsageError when `_target_` is not a network class that ``charlm.models`` itself defines, or
    when the class refuses the arguments.
    """
    target = spec.get("_target_")
    family = resolve_class(target, [FAMILIES])
    if not isinstance(family, type) or not issubclass(family, Network) or family is Network:
        raise UsageError(f"model: {target!r} is not a network in {FAMILIES}.*: nothing else is built")
    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    window = arguments.pop("window", None)
    with as_usage_error("model"):
        network = family(vocab_size=vocab_size, **arguments)
        if getattr(network, "places", None) not in (None, window):
            raise ValueError(f"places={network.places} is the length of a window: give window={network.places}")
        if window is None:
            return network
        if not isinstance(network, Sequence):
            raise ValueError(f"{family.__name__} takes no window: only a {Sequence.__name__} does")
        return Windowed(network, window)


@contextmanager
def at_most(count: int, limit: str) -> Iterator[None]:
    """Raise UsageError as soon as modules are given more than `count` parameters, as `limit` says."""
    left = count

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UsageError(f"the model has more than the {count:,} parameter tensors that {limit}")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
