"""When checkpoints are written: ``best.ckpt``, ``last.ckpt``, and ``cycle-1.ckpt`` … for SGDR.

Replaces Lightning's ModelCheckpoint, which writes one file at one occasion, fails for good when the disk is full, and
forgets the best loss when the folder is moved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from charlm.checkpoint.storage import replace_file
from charlm.options import Options, Positive, PositiveInt
from charlm.training.callbacks.divergence_guard import DivergenceGuard
from charlm.training.interrupt import Interrupt
from charlm.training.ranks import anywhere, highest
from charlm.training.schedulers import cycles_begun


class CheckpointOptions(Options):
    """How often ``last.ckpt`` is written, besides after every epoch."""

    every_minutes: Positive | None = 5
    """Minutes between two writes of last.ckpt within an epoch; null: no limit in time."""
    every_steps: PositiveInt | None = None
    """Steps between two writes of last.ckpt within an epoch; null: no limit in steps."""


class Checkpoints(Checkpoint):
    """Writes `best` after the validation with the lowest loss so far, and `last` to resume from.

    `last` is written when training begins, after every epoch, as often as `options` say, and when the user interrupts.
    ``cycle-1.ckpt`` … hold the weights at the end of each SGDR cycle (fast.ai's `on_cycle_end`); a cycle is a whole
    number of epochs. Nothing is written while `guard` suspects divergence. `monitor` names the loss that decides about
    `best`; a training loss is read at the end of an epoch. If the user has deleted `folder`, `on_deleted` is called,
    and `best` is found anew among the losses from then on.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        interrupt: Interrupt,
        guard: DivergenceGuard,
        options: CheckpointOptions,
        on_deleted: Callable[[], None] = lambda: None,
    ) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.monitor, self.interrupt, self.guard = monitor, interrupt, guard
        self.on_deleted = on_deleted
        self.every_steps = options.every_steps or math.inf
        self.every_seconds = 60 * (options.every_minutes or math.inf)
        self.lowest = math.inf
        self._stopped_before = 0  # the max_epochs of a run that stopped early

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a first checkpoint to resume from."""
        self._step = trainer.global_step
        # A run that stopped early trains on only if its max_epochs was raised.
        trainer.should_stop = self._stopped_before == trainer.max_epochs
        if trainer.is_global_zero:
            self.best.parent.mkdir(exist_ok=True)
        if self._step == 0:
            trainer.save_checkpoint(self.last)
        self._saved_step, self._saved_at = self._step, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write `last` when it is due, or when the user interrupts."""
        before, self._step = self._step, trainer.global_step
        if self._step == before or trainer.is_last_batch:  # gradients accumulate, or the end of the epoch writes it
            return
        steps, seconds = self._step - self._saved_step, time.monotonic() - self._saved_at
        # A clock and a signal are those of one rank of several, which save together.
        now = seconds >= self.every_seconds or self.interrupt.signal is not None
        if steps >= self.every_steps or anywhere(trainer, now):
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `best` if the validation loss is the lowest so far."""
        if trainer.state.fn == "fit" and self.monitor.startswith("val"):
            self._save_best(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `last`; `best` if there is no validation; and another one if an SGDR cycle ends here."""
        if self.monitor.startswith("train"):
            self._save_best(trainer)
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, CosineAnnealingWarmRestarts) and scheduler.T_cur == 0:
                self._save(trainer, self.last.with_name(f"cycle-{cycles_begun(scheduler)}.ckpt"))
        self._save_last(trainer)

    def _notice_deletion(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.broadcast(not self.best.parent.is_dir()):
            if trainer.is_global_zero:
                with suppress(OSError):  # the store reports it
                    self.best.parent.mkdir(parents=True)
            self.lowest = math.inf
            self.on_deleted()

    def _save_best(self, trainer: pl.Trainer) -> None:
        self._notice_deletion(trainer)
        loss = trainer.callback_metrics[self.monitor].item()
        if loss < self.lowest:
            self.lowest = loss
            self._save(trainer, self.best)

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._notice_deletion(trainer)
        self._stopped_before = int(trainer.max_epochs or 0) if trainer.should_stop else 0
        self._save(trainer, self.last)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self.interrupt.signal = highest(trainer, self.interrupt.signal or 0) or None
        self.interrupt.check()

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        self.guard.check(trainer)
        if not self.guard.streak:  # weights that may be bad must not replace good ones
            trainer.save_checkpoint(path)

    def complete(self, trainer: pl.Trainer) -> None:
        """Write what is missing after training: the folder was deleted, or no validation chose a `best`."""
        if not self.last.exists():
            self.on_deleted()
            trainer.save_checkpoint(self.last)
        if not self.best.exists():
            replace_file(self.best, self.last.read_bytes())

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss so far, and whether the run stopped early."""
        return {"lowest": self.lowest, "stopped_before": self._stopped_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self.lowest = float(state_dict["lowest"])
        self._stopped_before = int(state_dict.get("stopped_before", 0))
