"""`CharLM`: the one LightningModule, for every network family.

It carries the recurrent state from batch to batch, forgets its history, starts afresh where the data
says so, and keeps exact means of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint import KEY
from charlm.errors import UsageError
from charlm.metrics import MeanPerCharacter
from charlm.models import Network
from charlm.state import State, detach
from charlm.streams import IGNORE, Batch


class CharLM(pl.LightningModule):
    """Next-character training of `network` (see `charlm.models` for what a network is).

    Arguments: `optimizer`, called with the parameters; `schedule`, called with the optimiser, or None;
    `interval`, whether the schedule steps each "epoch" or each "step"; `entry`, what every checkpoint is to
    hold besides Lightning's own (see `charlm.checkpoint.pack`).

    Logs, in nats per character: train/nats, val/nats, test/nats; and for val and test /bpc (bits),
    /perplexity and /accuracy.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        interval: str = "epoch",
        entry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._entry = network, entry
        self._optimizer, self._schedule, self._interval = optimizer, schedule, interval
        self.train_nats = MeanPerCharacter()
        self.nats, self.accuracy = MeanPerCharacter(), MeanPerCharacter()
        # One slot a stage: validation never disturbs training. A plain dict, not buffers, so that weight
        # averaging and DDP leave it alone.
        self._carry: dict[str, State] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Take the short way for the one attribute that Lightning sets some twenty times a step.

        `nn.Module.__setattr__` looks for parameters, buffers and submodules each time: 0.05 ms a step.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _logits(self, stage: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the network from the stage's carried state: logits (B·T', V) and their targets (B·T')."""
        if batch.first:
            self._carry[stage] = self.network.initial_state(batch.x.shape[0])
        logits, state = self.network(batch.x, self._carry[stage])
        self._carry[stage] = detach(state)
        y = batch.y[:, -logits.shape[1] :]  # one target for families that predict only after a window
        return logits.reshape(-1, logits.shape[-1]).float(), y.reshape(-1)  # losses are float32 at least

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss over the batch's characters, in nats."""
        logits, y = self._logits("train", batch)
        loss = F.cross_entropy(logits, y)
        self.train_nats.update(loss.detach() * y.numel(), y.numel())
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss."""
        self.log("train/nats", self.train_nats.compute())
        self.train_nats.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the split's means."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the split's means."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits, y = self._logits(stage, batch)
        count = (y != IGNORE).sum()
        self.nats.update(F.cross_entropy(logits, y, ignore_index=IGNORE, reduction="sum"), count)
        self.accuracy.update((logits.argmax(-1) == y).sum(), count)

    def on_validation_epoch_end(self) -> None:
        """Log the split's means."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Log the split's means."""
        self._log_means("test")

    def _log_means(self, stage: str) -> None:
        nats = self.nats.compute()
        values = {
            "nats": nats,
            "bpc": nats / math.log(2),
            "perplexity": nats.exp(),
            "accuracy": self.accuracy.compute(),
        }
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        self.nats.reset()
        self.accuracy.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained."""
        if self._entry is not None:
            checkpoint[KEY] = self._entry

    def configure_optimizers(self) -> Any:
        """The optimiser and, if there is one, its schedule. Raises UsageError for arguments they refuse."""
        try:
            optimizer = self._optimizer(self.parameters())
        except (TypeError, ValueError) as error:
            raise UsageError(f"optimizer: {error}") from None
        if self._schedule is None:
            return optimizer
        try:
            schedule = self._schedule(optimizer)
        except (TypeError, ValueError) as error:
            raise UsageError(f"schedule: {error}") from None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self._interval}}


def parameter_count(network: Network) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
