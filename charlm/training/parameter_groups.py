"""Learning rate and weight decay for each part of the network (the lesson's LayerOptimizer), and the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import model_validator
from torch.optim import Optimizer

from charlm.errors import UsageError, as_usage_error
from charlm.models.network import Network
from charlm.options import NonNegative, Options

ORDER = ("recurrent", "rest", "embedding", "head")  # the first group's learning rate is the one that is reported


class GroupOptions(Options):
    """Options of one part of the network; null is the optimiser's own value."""

    lr: NonNegative | None = None
    """Learning rate of this part; null: the optimiser's."""
    weight_decay: NonNegative | None = None
    """Weight decay of this part; null: the optimiser's."""
    frozen: bool = False
    """Keep the weights of this part as they are, for example those that init_from gives."""


class ParameterGroups(Options):
    """Options of the parts of a network (`Network.parameter_group`)."""

    embedding: GroupOptions = GroupOptions()
    recurrent: GroupOptions = GroupOptions()
    head: GroupOptions = GroupOptions()

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, parts: Any) -> Any:
        return {name: part for name, part in parts.items() if part is not None} if isinstance(parts, dict) else parts


def parameter_groups(network: Network, options: ParameterGroups) -> list[Any]:
    """The parameters for an optimiser, grouped by part if any part has options of its own. Freezes frozen parts.

    Raises UsageError for options of a part that the network does not have, and if all parts are frozen.
    """
    parts: dict[str, dict[str, Any]] = options.model_dump(exclude_none=True)
    frozen = {part for part, values in parts.items() if values.pop("frozen")}
    given = {part: values for part, values in parts.items() if values}
    named = [(network.parameter_group(name), parameter) for name, parameter in network.named_parameters()]
    for part in {**given, **dict.fromkeys(frozen)}:
        if part not in [own for own, _ in named]:
            raise UsageError(f"parameter_groups.{part}: this model has no parameters there; leave it null")
    groups: dict[str, dict[str, Any]] = {}
    for part, parameter in named:
        if part in frozen:
            parameter.requires_grad_(False)
            continue
        key = part if part in given else "rest"
        groups.setdefault(key, {"name": key, **given.get(part, {}), "params": []})["params"].append(parameter)
    if not groups:
        raise UsageError("parameter_groups: all parts of this model are frozen, so nothing is left to train")
    if not given:
        return list(groups["rest"]["params"])
    return sorted(groups.values(), key=lambda group: ORDER.index(group["name"]))


def build_optimizer(create: Callable[[list[Any]], Optimizer], network: Network, options: ParameterGroups) -> Optimizer:
    """The optimiser that `create` makes of the parameter groups. Raises UsageError for arguments that it refuses."""
    groups = parameter_groups(network, options)
    with as_usage_error("optimizer"):
        optimizer = create(groups)
    if "weight_decay" not in optimizer.defaults and any("weight_decay" in group for group in optimizer.param_groups):
        raise UsageError(f"parameter_groups: {type(optimizer).__name__} has no weight_decay, leave it null")
    return optimizer


def current_lr(optimizer: Optimizer) -> float:
    """The learning rate of the first parameter group: the recurrent one, if it has options of its own."""
    return float(optimizer.param_groups[0]["lr"])
