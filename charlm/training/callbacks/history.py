"""The metrics of a run: one row per epoch in `metrics.csv`, and a line every few steps to the loggers."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from charlm.checkpoint.storage import Store
from charlm.training.parameter_groups import current_lr

VALIDATED = ("nats", "bpc", "perplexity", "accuracy")
VAL_COLUMNS = tuple(f"val_{name}" for name in VALIDATED)
COLUMNS = ("epoch", "step", "train_nats", *VAL_COLUMNS, "learning_rate", "characters_per_second", "seconds")


class History(pl.Callback):
    """Keeps `rows`, one dict of `COLUMNS` per epoch (counted from 1), and writes them to ``metrics.csv``.

    `characters_per_second` is the number of training characters over the time spent training, without validation;
    `seconds` is the time of the whole epoch. Missing values are None. All of this is saved in checkpoints, so that rows
    and times continue in a resumed run; they leave out work that was lost when a run was killed.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self.store = path, store
        self.rows: list[dict[str, Any]] = []
        self.best_nats = math.inf  # over all validations, also those within an epoch
        self.characters, self.training_seconds = 0, 0.0
        self.fit_seconds = self.earlier_seconds = 0.0  # `earlier_seconds` is the part before a resume
        self._val: dict[str, float] = {}
        self._epoch: dict[str, Any] = {}  # the unfinished epoch of a checkpoint

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the logging interval, and continue the unfinished epoch of a checkpoint."""
        self._every = trainer.log_every_n_steps if trainer.loggers else 0
        self._logged_step = trainer.global_step
        now = time.perf_counter()
        self._fit_started = now - self.fit_seconds
        self.on_train_epoch_start(trainer, pl_module)
        if self._epoch:
            self._started, self._trained = now - self._epoch["seconds"], self._epoch["trained"]
            self._lr, self._val = self._epoch["learning_rate"], dict(self._epoch["val"])
            total, count, seconds = self._epoch["logged"]
            self._logged = (total, count, now - seconds)
            self._epoch = {}
        self.write()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clocks."""
        self._started = self._resumed = time.perf_counter()
        self._trained, self._lr = 0.0, current_lr(trainer.optimizers[0])
        self._logged = (0.0, 0, self._started)
        self._val = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the learning rate, and the mean loss and speed since the last log, every `log_every_n_steps` steps."""
        step = trainer.global_step
        if not self._every or step == self._logged_step or step % self._every:  # equal while gradients accumulate
            return
        self._logged_step = step
        # Reading the sums waits for the device, hence not at each step.
        (total, count), now = pl_module.train_nats.sum_and_count(), time.perf_counter()
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
        """Record the time of the whole fit, including validation, samples and checkpoints."""
        self.fit_seconds = time.perf_counter() - self._fit_started

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop the training clock."""
        if trainer.state.fn == "fit":
            int(pl_module.train_nats.count)  # wait for the device to finish the work that is being timed
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
        """Add the row of the epoch. Runs before the module's own hook, which resets the means."""
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
        self.write()

    def write(self) -> None:
        """Write the rows so far."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        self.store.write(self.path, text.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        """The rows and sums so far, and the unfinished epoch."""
        now = time.perf_counter()
        return {
            "rows": list(self.rows),
            "best_nats": self.best_nats,
            "characters": self.characters,
            "training_seconds": self.training_seconds,
            "fit_seconds": now - self._fit_started,
            "epoch": {
                "seconds": now - self._started,
                "trained": self._trained + now - self._resumed,
                "logged": (*self._logged[:2], now - self._logged[2]),
                "learning_rate": self._lr,
                "val": self._val,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all of it."""
        self.rows = [{name: _number(name, row[name]) for name in COLUMNS} for row in state_dict["rows"]]
        self.best_nats, self.characters = float(state_dict["best_nats"]), int(state_dict["characters"])
        self.training_seconds, self.fit_seconds = (
            float(state_dict["training_seconds"]),
            float(state_dict["fit_seconds"]),
        )
        epoch = state_dict["epoch"]
        total, count, seconds = epoch["logged"]
        self._epoch = {
            **{name: float(epoch[name]) for name in ("seconds", "trained", "learning_rate")},
            "logged": (float(total), int(count), float(seconds)),
            "val": {name: float(value) for name, value in epoch["val"].items() if name in VALIDATED},
        }
        self.earlier_seconds = self.fit_seconds


def _number(name: str, value: Any) -> int | float | None:
    """`value`, if it is what the column `name` may hold, because a row is first read after hours of training."""
    if not (isinstance(value, int | float) or (value is None and name in VAL_COLUMNS)):
        raise TypeError(f"{name} in a row of the metrics is {value!r}")
    return value
