"""From a network's specification, ``_target_`` and plain keyword arguments, to the network."""

from __future__ import annotations

import importlib
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

TRUST = "CHARLM_TRUST"  # the environment variable with the user's own packages: no file can set it

MOST_TENSORS = 10_000  # parameters of a network: making more takes longer than anyone means to wait


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


def package_of(target: object) -> str:
    """The package that has to be trusted for `target` to be made."""
    return str(target).partition(".")[0]


def build_network(spec: Mapping[str, Any], vocab_size: int, trust: Iterable[str] | None = ()) -> Network:
    """Make a network from its specification: ``_target_`` and plain keyword arguments.

    The class must be defined in ``charlm.models``, in one of the packages `trust`, or in one that the user names in
    ``CHARLM_TRUST``. None trusts whatever `spec` names: for what the user typed, never for what a file says.
    With ``window``, an argument that any family takes, it predicts only after so many characters (see `Windowed`).
    Raises UsageError for another `_target_`, and when the class refuses the arguments.
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


def find_family(target: object, trust: list[str]) -> type[Network]:
    """The class that `target` names. Raises UsageError, before anything is imported, where it is not trusted."""
    trusted = [name for name in map(str.strip, [*trust, *os.environ.get(TRUST, "").split(",")]) if name]
    with as_usage_error(f"model: {target!r}"):  # importing the user's own package can raise anything
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
    with as_usage_error(f"model: {target!r}"):  # a module that is missing, or one that it imports in its turn
        importlib.import_module(module)
    raise UsageError(f"{refusal}, nor a subclass of {Network.__module__}.Network that {package} defines")


@contextmanager
def at_most(count: int, limit: str) -> Iterator[None]:
    """Raise UsageError as soon as modules are given more than `count` parameters, as `limit` says.

    A tied or re-assigned one counts each time that it is given.
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
