"""Learning rate and weight decay for each part of the network (the lesson's LayerOptimizer)."""

from __future__ import annotations

from typing import Any

from charlm.errors import UsageError
from charlm.models.network import Network
from charlm.options import NonNegative, Options

ORDER = ("recurrent", "rest", "embedding", "head")  # the first group's learning rate is the one that is reported


class GroupOptions(Options):
    """Options of one part of the network; null is the optimiser's own value."""

    lr: NonNegative | None = None
    """Learning rate of this part; null: the optimiser's."""
    weight_decay: NonNegative | None = None
    """Weight decay of this part; null: the optimiser's."""


class ParameterGroups(Options):
    """The parts of a network (`Network.parameter_group`)."""

    embedding: GroupOptions = GroupOptions()
    recurrent: GroupOptions = GroupOptions()
    head: GroupOptions = GroupOptions()


def parameter_groups(network: Network, options: ParameterGroups) -> list[Any]:
    """The parameters for an optimiser, grouped by part if any part has options of its own.

    Raises UsageError for options of a part that the network does not have.
    """
    asked = {part: {k: v for k, v in values.items() if v is not None} for part, values in options.model_dump().items()}
    asked = {part: values for part, values in asked.items() if values}
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
    return sorted(groups.values(), key=lambda group: ORDER.index(group["name"]))
