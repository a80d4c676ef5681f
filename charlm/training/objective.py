"""The training objective."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.checks import check_choice, check_number
from charlm.data.batch import IGNORE
from charlm.models.network import Network


class Objective:
    """What training minimises: the cross-entropy, reduced in one of two ways, and an L2 penalty.

    Arguments: `reduction`, "mean" over all characters, or "sum" over each row's characters and the mean
    over rows, as from-scratch SGD on single sequences has it; `l2`, the factor of Σ w² over all weight
    matrices (every parameter with two dimensions or more). Raises UsageError for other values.
    """

    def __init__(self, reduction: str = "mean", l2: float = 0.0) -> None:
        self.sum = check_choice("objective.reduction", reduction, ("mean", "sum")) == "sum"
        self.l2 = check_number("objective.l2", l2)

    def __call__(self, logits_BTV: Tensor, y_BT: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is minimised, the mean in nats per character, and the penalty in it, if any."""
        nats = F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten())
        loss = nats * (y_BT != IGNORE).sum() / len(y_BT) if self.sum else nats
        if not self.l2:
            return loss, nats, None
        penalty = self.l2 * torch.stack([w.square().sum() for w in network.parameters() if w.dim() > 1]).sum()
        return loss + penalty, nats, penalty
