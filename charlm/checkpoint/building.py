"""Build a network from its specification: ``_target_`` and plain keyword arguments."""

from __future__ import annotations

import importlib
import inspect
import os
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

TRUST = "CHARLM_TRUST"  # the environment variable that names trusted packages: no file can set it

MOST_TENSORS = 10_000  # parameter tensors of a network: a checkpoint must not make us build forever


def resolve_class(target: object, within: Iterable[str]) -> Any:
    """The public class or function that `target` names, if it is defined in one of the packages `within`; else None.

    What such a package merely imports does not count: ``charlm.text.sources.os.system`` must not be reachable.
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


def package_of(target: object) -> str:
    """The package that has to be trusted to build `target`."""
    return str(target).partition(".")[0]


def build_network(spec: Mapping[str, Any], vocab_size: int, trust: Iterable[str] | None = ()) -> Network:
    """Build a network from its specification: ``_target_`` and plain keyword arguments.

    The class must be defined in ``charlm.models``, in a package in `trust`, or in one that the user names in
    ``CHARLM_TRUST``. If `trust` is None, every class is allowed: for what the user typed, never for what a file says.
    ``window``, an argument for every family, wraps the network in `Windowed`. Raises UsageError for another `_target_`,
    and if the class refuses the arguments.
    """
    target = spec.get("_target_")
    if trust is None:
        trust = [package_of(target)]
    family = find_family(target, [trust] if isinstance(trust, str) else list(trust))
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


def specify(network: nn.Module) -> dict[str, Any]:
    """The inverse of `build_network`, from the arguments that the network was built with; without the vocabulary size.

    Raises UsageError for a network that its arguments do not describe.
    """
    if isinstance(network, Windowed):
        return {**specify(network.network), "window": network.window}
    kind = type(network)
    if not isinstance(network, Network) or "<locals>" in kind.__qualname__ or kind.__name__ != kind.__qualname__:
        raise UsageError(f"{kind.__qualname__} is not a subclass of Network that a module defines by name")
    values = {name: value for name, value in arguments_of(network).items() if name != "vocab_size"}
    if not all(isinstance(value, str | int | float | bool | list | dict | None) for value in values.values()):
        raise UsageError(f"{kind.__name__} was built with more than plain values")
    return {"_target_": f"{kind.__module__}.{kind.__name__}", **values}


def arguments_of(network: Network) -> dict[str, Any]:
    """The arguments that `network` was built with, by name. Raises UsageError where its class does not name them."""
    places, options = network.built_with
    if not places:
        return options
    bases = [base for base in type(network).__mro__ if "__init__" in vars(base)]
    constructors = [inspect.signature(vars(base)["__init__"]) for base in bases]
    # By the first constructor that names what others only pass on.
    naming = (s for s in constructors if not any(p.kind is p.VAR_POSITIONAL for p in s.parameters.values()))
    if (named := next(naming, None)) is None:
        raise UsageError(f"{type(network).__name__} does not name its arguments")
    return {**dict(zip(list(named.parameters)[1:], places, strict=False)), **options}


def find_family(target: object, trust: list[str]) -> type[Network]:
    """The class that `target` names. Raises UsageError, before importing anything, if it is not trusted."""
    trusted = [name for name in map(str.strip, [*trust, *os.environ.get(TRUST, "").split(",")]) if name]
    with as_usage_error(f"model: {target!r}"):  # importing a user's package can raise anything
        family = resolve_class(target, [FAMILIES, *trusted])
    if isinstance(family, type) and issubclass(family, Network) and family is not Network:
        return family
    refusal, package = f"model: {str(target)[:80]!r} is not a network in {FAMILIES}.*", package_of(target)
    if package == "charlm" or not package.isidentifier() or "." not in str(target):
        raise UsageError(f"{refusal}: nothing else is built")
    module = str(target).rpartition(".")[0]
    if family is None and not any(f"{module}.".startswith(f"{name}.") for name in trusted):
        raise UsageError(
            f"{refusal}: if you trust the package {package}, set {TRUST}={package} in the environment, or give "
            f"trust=[{package!r}] in Python"
        )
    with as_usage_error(f"model: {target!r}"):  # the module, or one that it imports, may be missing
        importlib.import_module(module)
    raise UsageError(f"{refusal}, nor a subclass of {Network.__module__}.Network that {package} defines")


@contextmanager
def at_most(count: int, limit: str) -> Iterator[None]:
    """Raise UsageError as soon as modules register more than `count` parameters. `limit` completes the message.

    A tied or re-assigned parameter counts each time it is registered.
    """
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
