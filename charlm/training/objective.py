"""The training objective."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.data.batch import IGNORE
from charlm.models.network import Network
from charlm.options import NonNegative, Options


class Objective(Options):
    """The cross-entropy, reduced in one of two ways, with an optional L2 penalty."""

    reduction: Literal["mean", "sum"] = "mean"
    """Mean over all characters, or sum over the characters of a row and mean over rows (SGD on single sequences)."""
    l2: NonNegative = 0.0
    """Factor of Σ w² over all weight matrices, added to the objective but to no reported loss."""

    def __call__(
        self, logits_BTV: Tensor, y_BT: Tensor, network: Network, weights: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The objective, the mean loss in nats per character, and the penalty, if any.

        `weights` are those of the `Batch`. The penalty has none: it is the same in every process.
        """
        nats = F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten())
        loss = nats * (y_BT != IGNORE).sum() / len(y_BT) if self.reduction == "sum" else nats
        weight = weights[self.reduction == "sum"]
        if weight != 1:
            loss = loss * weight
        if not self.l2:
            return loss, nats, None
        penalty = self.l2 * torch.stack([w.square().sum() for w in network.parameters() if w.dim() > 1]).sum()
        return loss + penalty, nats, penalty
