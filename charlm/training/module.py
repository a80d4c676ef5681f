"""`CharLM`: the LightningModule of every network family. State → network → objective → metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from charlm.checkpoint.format import KEY, PROGRESS, TRAINING, read_progress
from charlm.data.batch import IGNORE, Batch
from charlm.data.module import CharDataModule
from charlm.errors import UsageError
from charlm.models.network import Network
from charlm.models.state import State, detach, map_state, where_rows
from charlm.training import random_state, resuming
from charlm.training.metrics import MeanPerCharacter
from charlm.training.objective import Objective
from charlm.training.parameter_groups import ParameterGroups, build_optimizer
from charlm.training.ranks import add_up, several
from charlm.training.schedulers import build_scheduler

ADAM = partial(Adam, lr=1e-3)


class CharLM(pl.LightningModule):
    """Trains a network to predict the next character by truncated BPTT, carrying its state from batch to batch.

    `optimizer` is called with the parameter groups, and `scheduler` with the optimiser; `interval` says whether the
    scheduler steps after each "epoch" or each "step". Every checkpoint holds `entry` (see `charlm.checkpoint.format`),
    which `charlm.load` needs. Without one, it is made from the network's arguments and the trainer's `CharDataModule`;
    if that is impossible, a warning says why, and checkpoints can only be resumed.

    Logs train/nats, val/nats and test/nats (nats per character), for val and test also /bpc (bits per character),
    /perplexity and /accuracy, and train/penalty if the objective has one.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[list[Any]], Optimizer] = ADAM,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        interval: str = "epoch",
        groups: ParameterGroups | None = None,
        objective: Objective | None = None,
        entry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._entry = network, entry
        self._optimizer, self._scheduler, self._interval = optimizer, scheduler, interval
        self._groups, self._objective = groups or ParameterGroups(), objective or Objective()
        self.train_nats, self.penalty = MeanPerCharacter(), MeanPerCharacter()
        self.nats, self.accuracy = MeanPerCharacter(), MeanPerCharacter()
        self._running_means = {"train_nats": self.train_nats, "penalty": self.penalty}  # saved in checkpoints
        # One state per stage, so that validation does not disturb training. A plain dict instead of buffers, so that
        # weight averaging and DDP leave it alone.
        self._carry: dict[str, State] = {}
        self._resumed: dict[str, Any] | None = None  # the training state of a checkpoint, until training starts
        self._progress: dict[str, float] = {}  # the last loss that describes the weights, and its epoch
        self.first_step: int | None = None  # the global step when training started, after everything was restored

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        """The optimiser and the scheduler, if any. Raises UsageError for arguments that they refuse."""
        optimizer = build_optimizer(self._optimizer, self.network, self._groups)
        if self._scheduler is None:
            return [optimizer], []
        scheduler = build_scheduler(self._scheduler, optimizer)
        # ReduceLROnPlateau is not Lightning's to step, see `_step_plateau`.
        return [optimizer], [{"scheduler": scheduler, "interval": self._interval, "reduce_on_plateau": False}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler that does not read the loss."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _step_plateau(self, loss: Tensor) -> None:
        """Show a loss to ReduceLROnPlateau. Lightning does so only after the epoch's checkpoint has been written."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(loss.item())

    def set_scheduler(self, scheduler: Callable[[Optimizer], LRScheduler], interval: str) -> None:
        """Use another scheduler."""
        self._scheduler, self._interval = scheduler, interval

    def _logits(self, stage: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the network from the stage's state: logits (B, T', V) and their targets (B, T')."""
        state = self._carry.get(stage)
        if state is None or batch.first is True:
            state = self.network.initial_state(batch.x.shape[0])
        elif batch.first is not False:  # a mask: only some rows start a new sequence
            state = where_rows(batch.first, self.network.initial_state(batch.x.shape[0]), state)
        logits, state, _ = self.network(batch.x, state)
        self._carry[stage] = detach(state)
        # Some families predict only the character after the window. The loss is computed in float32 or better.
        return logits.float(), batch.y[:, -logits.shape[1] :]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective for one batch."""
        logits, y = self._logits("train", batch)
        loss, nats, penalty = self._objective(logits, y, self.network, batch.weights)
        count: Tensor | int = y.numel() - batch.padded if any(batch.weights) else 0
        self.step_nats = nats.detach()
        total = self.step_nats * count
        if several():  # everything that reads the loss sees that of the whole batch, on every rank
            total, number = add_up(torch.stack([total.double(), total.new_tensor(count, dtype=torch.float64)]))
            self.step_nats, count = total / number, number.long()
        self.train_nats.update(total, count)
        if penalty is not None:
            self.penalty.update(penalty.detach(), 1)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the training loss of the epoch."""
        nats = self.train_nats.compute()
        self.log("train/nats", nats)
        if not (self.trainer.enable_validation and any(self.trainer.num_val_batches)):
            self._step_plateau(nats)
        if self._progress.get("epoch") != self.current_epoch + 1:  # there was no validation
            self._progress = {"epoch": self.current_epoch + 1, "train_nats": nats.item()}
        self.train_nats.reset()
        if self._objective.l2:
            self.log("train/penalty", self.penalty.compute())
            self.penalty.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the means."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the means."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits, y = self._logits(stage, batch)
        count = (y != IGNORE).sum()
        self.nats.update(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"), count)
        self.accuracy.update((logits.argmax(-1) == y).sum(), count)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        nats = self._log_means("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._progress = {"epoch": self.current_epoch + 1, "val_nats": nats.item()}
            self._step_plateau(nats)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_means("test")

    def _log_means(self, stage: str) -> Tensor:
        self.nats.add_up()
        self.accuracy.add_up()
        nats, accuracy = self.nats.compute(), self.accuracy.compute()
        values = {"nats": nats, "bpc": nats / math.log(2), "perplexity": nats.exp(), "accuracy": accuracy}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        self.nats.reset()
        self.accuracy.reset()
        return nats

    def on_fit_start(self) -> None:
        """Make the entry of checkpoints, if there is none. Raises UsageError for a network with too few symbols."""
        if several():
            random_state.separate(torch.initial_seed(), self.trainer.global_rank)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CharDataModule):
            resuming.check_symbols(self.network, data)
        if self._entry is None:
            try:
                self._entry = resuming.make_entry(self.network, data)
            except UsageError as error:
                if self.trainer.checkpoint_callbacks:
                    rank_zero_warn(f"charlm.load will not open the checkpoints of this training: {error}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained and add the carried state."""
        if self._entry is not None:
            checkpoint[KEY] = self._entry
        checkpoint[PROGRESS] = dict(self._progress)
        alone = self.trainer.world_size > 1 and not several()  # after training, when this rank's rows are all it has
        carry = None if alone else self._carry.get("train")
        checkpoint[TRAINING] = resuming.training_state(carry, self._running_means)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the training state for `on_train_start`. Raises UsageError for a damaged checkpoint."""
        (optimizer,), configs = self.configure_optimizers()
        resuming.check_checkpoint(checkpoint, self.trainer, optimizer, [config["scheduler"] for config in configs])
        self._resumed, self._progress = checkpoint[TRAINING], read_progress(checkpoint.get(PROGRESS))

    def on_train_start(self) -> None:
        """Restore the carried state; last of all, so that nothing draws random numbers in between."""
        if self._resumed is not None:
            resuming.check_optimizer_state(self.trainer.optimizers[0])
            world, rank = self.trainer.world_size, self.trainer.global_rank
            carry = resuming.restore_training_state(self._resumed, self._running_means, rank, world)
            if carry is not None:
                self._carry["train"] = map_state(lambda part: part.to(self.device), carry)
        self._resumed, self.first_step = None, self.trainer.global_step


def parameter_count(network: Network) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
