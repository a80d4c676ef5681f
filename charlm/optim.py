"""What is minimised and how: parameter groups (the lesson's LayerOptimizer) and the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.errors import UsageError
from charlm.models import Network
from charlm.options import choice, number
from charlm.streams import IGNORE

PARTS = ("embedding", "recurrent", "head")


def parameter_groups(network: Network, options: Mapping[str, Mapping[str, float | None]]) -> list[Any]:
    """The network's parameters for an optimiser, in a group for each part that has options of its own.

    `options` maps a part ("embedding", "recurrent", "head") to its ``lr`` and ``weight_decay``; None
    leaves the optimiser's own. Without any, the parameters come as they are. Raises UsageError for unknown
    names, numbers below 0, and parts that the network has not got.
    """
    asked: dict[str, dict[str, float]] = {}
    if not isinstance(options, Mapping):
        raise UsageError(f"parameter_groups={options} must hold {', '.join(PARTS)}")
    for part, values in options.items():
        if part not in PARTS:
            raise UsageError(f"parameter_groups has no part {part!r}: its parts are {', '.join(PARTS)}")
        if not isinstance(values, Mapping | None):
            raise UsageError(f"parameter_groups.{part}={values} must hold lr and weight_decay")
        for name, value in (values or {}).items():
            if name not in ("lr", "weight_decay"):
                raise UsageError(f"parameter_groups.{part} has no option {name!r}: it takes lr and weight_decay")
            if value is not None:
                asked.setdefault(part, {})[name] = number(f"parameter_groups.{part}.{name}", value)
    if not asked:
        return list(network.parameters())
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        part = network.part(name)
        key = part if part in asked else "rest"
        groups.setdefault(key, {"name": key, **asked.get(part, {}), "params": []})["params"].append(parameter)
    for part in asked:
        if part not in groups:
            raise UsageError(f"parameter_groups.{part}: this model has no parameters there; leave it null")
    return sorted(groups.values(), key=lambda group: ("recurrent", "rest", "embedding", "head").index(group["name"]))


class Objective:
    """What training minimises: the cross-entropy, reduced in one of two ways, and an L2 penalty.

    Arguments: `reduction`, "mean" over all characters, or "sum" over each row's characters and the mean
    over rows, as from-scratch SGD on single sequences has it; `l2`, the factor of Σ w² over all weight
    matrices (every parameter with two dimensions or more). Raises UsageError for other values.
    """

    def __init__(self, reduction: str = "mean", l2: float = 0.0) -> None:
        self.sum = choice("objective.reduction", reduction, ("mean", "sum")) == "sum"
        self.l2 = number("objective.l2", l2)

    def __call__(self, logits_BTV: Tensor, y_BT: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is minimised, the mean in nats per character, and the penalty in it, if any."""
        nats = F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten())
        loss = nats * (y_BT != IGNORE).sum() / len(y_BT) if self.sum else nats
        if not self.l2:
            return loss, nats, None
        penalty = self.l2 * torch.stack([w.square().sum() for w in network.parameters() if w.dim() > 1]).sum()
        return loss + penalty, nats, penalty
