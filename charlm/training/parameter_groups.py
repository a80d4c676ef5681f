"""Learning rate and weight decay by part of the network (the lesson's LayerOptimizer)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from charlm.checks import check_number
from charlm.errors import UsageError
from charlm.models.network import Network

GROUPS = ("embedding", "recurrent", "head")


def parameter_groups(network: Network, options: Mapping[str, Mapping[str, float | None]]) -> list[Any]:
    """The network's parameters for an optimiser, in a group for each part that has options of its own.

    `options` maps a part ("embedding", "recurrent", "head") to its ``lr`` and ``weight_decay``; None
    leaves the optimiser's own. Without any, the parameters come as they are. Raises UsageError for unknown
    names, numbers below 0, and parts that the network has not got.
    """
    asked: dict[str, dict[str, float]] = {}
    if not isinstance(options, Mapping):
        raise UsageError(f"parameter_groups={options} must hold {', '.join(GROUPS)}")
    for part, values in options.items():
        if part not in GROUPS:
            raise UsageError(f"parameter_groups has no part {part!r}: its parts are {', '.join(GROUPS)}")
        if not isinstance(values, Mapping | None):
            raise UsageError(f"parameter_groups.{part}={values} must hold lr and weight_decay")
        for name, value in (values or {}).items():
            if name not in ("lr", "weight_decay"):
                raise UsageError(f"parameter_groups.{part} has no option {name!r}: it takes lr and weight_decay")
            if value is not None:
                asked.setdefault(part, {})[name] = check_number(f"parameter_groups.{part}.{name}", value)
    if not asked:
        return list(network.parameters())
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        part = network.parameter_group(name)
        key = part if part in asked else "rest"
        groups.setdefault(key, {"name": key, **asked.get(part, {}), "params": []})["params"].append(parameter)
    for part in asked:
        if part not in groups:
            raise UsageError(f"parameter_groups.{part}: this model has no parameters there; leave it null")
    return sorted(groups.values(), key=lambda group: ("recurrent", "rest", "embedding", "head").index(group["name"]))
