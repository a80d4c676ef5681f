"""What a run measured: one row an epoch, in `metrics.csv`; a line every few steps to the loggers."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from charlm.module import current_lr

COLUMNS = (
    "epoch",
    "step",
    "train_nats",
    "val_nats",
    "val_bpc",
    "val_perplexity",
    "val_accuracy",
    "learning_rate",
    "characters_per_second",
    "seconds",
)
VALIDATED = ("nats", "bpc", "perplexity", "accuracy")


class History(pl.Callback):
    """Keeps `rows`, one dict of `COLUMNS` an epoch (epochs count from 1), and writes them to a CSV file.

    `characters_per_second` counts training characters over the time spent training, validation left
    out. `seconds` is the whole epoch with its validation. Missing values are None.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.best_nats = math.inf  # over all validations, an epoch's end or not
        self.characters, self.training_seconds = 0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note how often to log; asked once, not at each step."""
        self._every = trainer.log_every_n_steps if trainer.loggers else 0
        self._logged_step = trainer.global_step
        self._fit_started = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clocks."""
        self._started = self._resumed = time.perf_counter()
        self._trained, self._lr = 0.0, current_lr(trainer.optimizers[0])
        self._logged = (0.0, 0, self._started)
        self._val: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Every `log_every_n_steps` steps, log the mean loss, the rate and the speed since the last time."""
        step = trainer.global_step
        if not self._every or step == self._logged_step or step % self._every:  # accumulating: the step stays
            return
        self._logged_step = step
        # Reading the sums waits for the device: only here, never at each step.
        total, count, now = (
            pl_module.train_nats.total.item(),
            int(pl_module.train_nats.count),
            time.perf_counter(),
        )
        before_total, before_count, before = self._logged
        self._logged = (total, count, now)
        characters = max(count - before_count, 1)
        values = {
            "train/nats_step": (total - before_total) / characters,
            "learning_rate": current_lr(trainer.optimizers[0]),
            "characters_per_second": characters / (now - before),
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note how long the whole fit took, with its validations, samples and checkpoints."""
        self.fit_seconds = time.perf_counter() - self._fit_started

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop the training clock."""
        if trainer.state.fn == "fit":
            int(pl_module.train_nats.count)  # let a device finish the work that is to be timed
            self._paused = time.perf_counter()
            self._trained += self._paused - self._resumed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the training clock again."""
        if trainer.state.fn == "fit":
            self._val = {name: trainer.callback_metrics[f"val/{name}"].item() for name in VALIDATED}
            self.best_nats = min(self.best_nats, self._val["nats"])
            self._resumed = time.perf_counter()
            self._logged = (*self._logged[:2], self._logged[2] + self._resumed - self._paused)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add the epoch's row. Runs before the module's own hook, which empties the means."""
        count, nats = int(pl_module.train_nats.count), pl_module.train_nats.compute().item()
        now = time.perf_counter()
        self._trained += now - self._resumed
        self.characters += count
        self.training_seconds += self._trained
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_nats": nats,
            **{f"val_{name}": self._val.get(name) for name in VALIDATED},
            "learning_rate": self._lr,
            "characters_per_second": count / self._trained,
            "seconds": now - self._started,
        }
        self.rows.append(row)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
