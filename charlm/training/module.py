"""`CharLM`: the one LightningModule, for every network family.

It carries the recurrent state from batch to batch, detaches it, starts afresh where the data says so, and keeps exact
means of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint.format import KEY, TRAINING
from charlm.data.batch import IGNORE, Batch
from charlm.errors import UsageError, as_usage_error
from charlm.models.network import Network
from charlm.models.state import State, detach, map_state, where_rows
from charlm.training import random_state
from charlm.training.metrics import MeanPerCharacter
from charlm.training.objective import Objective
from charlm.training.parameter_groups import ParameterGroups, parameter_groups
from charlm.training.resume_checks import check_state, value_type, value_types


class CharLM(pl.LightningModule):
    """Next-character training of `network` (see `charlm.models` for what a network is).

    Arguments: `optimizer`, called with the parameters; `schedule`, called with the optimiser, or None;
    `interval`, whether the schedule steps each "epoch" or each "step"; `groups`, learning rate and weight
    decay by part of the network (see `charlm.training.parameter_groups`); `objective`, the training objective
    (None: the mean cross-entropy); `entry`, what every checkpoint is to hold besides Lightning's own (see
    `charlm.checkpoint.pack`).

    Logs, in nats per character: train/nats, val/nats, test/nats; for val and test /bpc (bits),
    /perplexity and /accuracy; and train/penalty, if there is one, as it is minimised.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[list[Any]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        interval: str = "epoch",
        groups: ParameterGroups | None = None,
        objective: Objective | None = None,
        entry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._entry = network, entry
        self._optimizer, self._schedule, self._interval = optimizer, schedule, interval
        self._groups, self._objective = groups or ParameterGroups(), objective or Objective()
        self.train_nats, self.penalty = MeanPerCharacter(), MeanPerCharacter()
        self.nats, self.accuracy = MeanPerCharacter(), MeanPerCharacter()
        # One slot a stage: validation never disturbs training. A plain dict, not buffers, so that weight
        # averaging and DDP leave it alone.
        self._carry: dict[str, State] = {}
        self._resumed: dict[str, Any] | None = None  # from the checkpoint that training resumes from, until it does
        self._value_types: Any = None  # of the optimiser's options and the schedule's state: no checkpoint has another
        self.first_step: int | None = None  # how many were behind training when it began, with everything restored

    def __setattr__(self, name: str, value: Any) -> None:
        """Take the short way for an attribute that Lightning sets some twenty times a step, and one of ours.

        `nn.Module.__setattr__` looks for parameters, buffers and submodules each time: 0.05 ms a step.
        """
        if name in ("_current_fx_name", "step_nats"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _logits(self, stage: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the network from the stage's carried state: logits (B, T', V) and their targets (B, T')."""
        state = self._carry.get(stage)
        if state is None or batch.first is True:
            state = self.network.initial_state(batch.x.shape[0])
        elif batch.first is not False:  # rows of their own start afresh
            state = where_rows(batch.first, self.network.initial_state(batch.x.shape[0]), state)
        logits, state, _ = self.network(batch.x, state)
        self._carry[stage] = detach(state)
        # One target for families that predict only after a window. Losses are float32 at least.
        return logits.float(), batch.y[:, -logits.shape[1] :]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What is minimised over the batch: by default the mean loss over its characters, in nats."""
        logits, y = self._logits("train", batch)
        loss, nats, penalty = self._objective(logits, y, self.network)
        count = y.numel() - batch.padded
        self.step_nats = nats.detach()
        self.train_nats.update(nats.detach() * count, count)
        if penalty is not None:
            self.penalty.update(penalty.detach(), 1)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss."""
        self.log("train/nats", self.train_nats.compute())
        self.train_nats.reset()
        if self._objective.l2:
            self.log("train/penalty", self.penalty.compute())
            self.penalty.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the split's means."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the split's means."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits, y = self._logits(stage, batch)
        count = (y != IGNORE).sum()
        self.nats.update(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"), count)
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
        """Make the checkpoint self-contained, and enough to resume from exactly."""
        if self._entry is not None:
            checkpoint[KEY] = self._entry
        checkpoint[TRAINING] = {
            "carry": self._carry.get("train"),
            "means": {name: getattr(self, name).parts() for name in ("train_nats", "penalty")},
            "random": random_state.collect(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_train_start` resumes from. Raises UsageError for a part that is missing unnoticed."""
        trainer: Any = self.trainer
        stateful = {c.state_key for c in trainer.callbacks if type(c).state_dict is not pl.Callback.state_dict}
        (optimizer,) = checkpoint["optimizer_states"]
        groups, schedules = optimizer["param_groups"], checkpoint["lr_schedulers"]
        whole = {
            TRAINING: isinstance(checkpoint[TRAINING], dict),
            "loops": value_type(checkpoint["loops"]["fit_loop"]) == value_type(trainer.fit_loop.state_dict()),
            "callbacks": stateful <= set(checkpoint["callbacks"]),
            "optimizer_states, lr_schedulers": self._value_types in (None, value_types(groups, schedules)),
        }
        for part, there in whole.items():
            if not there:
                raise UsageError(f"the checkpoint cannot be resumed, it is damaged: its {part} are not whole")
        self._resumed = checkpoint[TRAINING]

    def on_train_start(self) -> None:
        """Go on from a checkpoint: as late as can be, so that nothing draws random numbers in between."""
        if self._resumed is not None:
            check_state(self.optimizers(use_pl_optimizer=False))
            if (carry := self._resumed["carry"]) is not None:
                self._carry["train"] = map_state(lambda part: part.to(self.device), carry)
            for name in ("train_nats", "penalty"):
                getattr(self, name).restore(*self._resumed["means"][name])
            random_state.restore(self._resumed["random"])
        self._resumed, self.first_step = None, self.trainer.global_step

    def configure_optimizers(self) -> Any:
        """The optimiser and, if there is one, its schedule. Raises UsageError for arguments they refuse."""
        with as_usage_error("optimizer"):
            optimizer = self._optimizer(parameter_groups(self.network, self._groups))
        if any("weight_decay" in (group or {}) for group in optimizer.param_groups) > (
            "weight_decay" in optimizer.defaults
        ):
            raise UsageError(f"parameter_groups: {type(optimizer).__name__} has no weight_decay")
        if self._schedule is None:
            self._value_types = value_types(optimizer.param_groups, [])
            return optimizer
        with as_usage_error("schedule.scheduler"):
            schedule = self._schedule(optimizer)
        self._value_types = value_types(optimizer.param_groups, [schedule.state_dict()])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self._interval}}


def parameter_count(network: Network) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first parameter group: the recurrent one, where they differ."""
    return float(optimizer.param_groups[0]["lr"])
