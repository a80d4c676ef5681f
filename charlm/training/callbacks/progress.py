"""Reports the progress of a run to whoever started it: to a sweep, for example, which shows it in its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import pytorch_lightning as pl

from charlm.training.callbacks.history import History

EVERY = 1.0  # seconds between two reports within an epoch


class Progress(pl.Callback):
    """Calls `report` with ``epoch``, ``epochs``, ``loss``, ``nats``, ``seconds`` and ``left``, now and then.

    ``nats`` is the best loss, which ``loss`` names: ``best_val_nats``, or ``best_train_nats`` without validation.
    Between two epochs, after ``last.ckpt`` was written, calls `between` with the number of the last one and its loss:
    that of the validation, or of the training if there is no validation at all.
    """

    def __init__(
        self,
        history: History,
        report: Callable[[dict[str, Any]], None],
        between: Callable[[int, float], None] | None = None,
    ) -> None:
        self.history, self.report, self.between = history, report, between

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = self._told = monotonic()
        self._first = trainer.global_step
        self._tell(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report once a second."""
        if monotonic() >= self._told + EVERY:
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the new loss. Runs after the history has added its row."""
        self._tell(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell `between` of the last epoch, if there was one."""
        if self.between is not None and self.history.rows:
            row = self.history.rows[-1]
            nats = row["val_nats"] if trainer.enable_validation else row["train_nats"]
            if nats is not None:
                self.between(row["epoch"], nats)

    def _tell(self, trainer: pl.Trainer) -> None:
        self._told = now = monotonic()
        steps, total = trainer.global_step - self._first, float(trainer.estimated_stepping_batches)
        left = (total - trainer.global_step) * (now - self._began) / steps if steps and math.isfinite(total) else None
        seconds = self.history.earlier_seconds + now - self._began
        with suppress(Exception):  # an observer
            self.report({**state(self.history, trainer), "seconds": seconds, "left": left})


def state(history: History, trainer: pl.Trainer) -> dict[str, Any]:
    """The epochs and the best loss so far."""
    loss, best = "best_val_nats", history.best_nats
    if not trainer.enable_validation:
        loss, best = "best_train_nats", min((row["train_nats"] for row in history.rows), default=math.inf)
    nats = best if math.isfinite(best) else None
    return {"epoch": len(history.rows), "epochs": trainer.max_epochs, "loss": loss, "nats": nats}
