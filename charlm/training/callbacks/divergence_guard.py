"""Stops a run whose loss has broken, while there is a good checkpoint left."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch

from charlm.errors import UsageError
from charlm.training.module import current_lr

EXPLODED = 3.0  # times the loss of a uniform guess …
PATIENCE = 100  # … for so many steps on end
LOOK = 50  # steps between two looks on a GPU, which each wait for it


class Diverged(UsageError):
    """The loss is not a number, infinite, or hopeless."""


class DivergenceGuard(pl.Callback):
    """Raises Diverged when a loss is NaN or infinite, or at least `EXPLODED`·ln V for `PATIENCE` steps on end.

    `streak` is for how many steps it has been that bad.
    """

    def __init__(self) -> None:
        self.streak = 0
        self._unseen: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Note what is too much, and how often to look."""
        self._limit = EXPLODED * math.log(max(2, len(trainer.datamodule.vocab)))
        self._every = 1 if pl_module.device.type == "cpu" else LOOK

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the losses since the last look, when it is due."""
        self._unseen.append(pl_module.step_nats)
        if len(self._unseen) >= self._every:
            self.look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the validation loss."""
        if trainer.state.fn == "fit":
            self.look(trainer)
            loss = trainer.callback_metrics["val/nats"].item()
            if not math.isfinite(loss):
                self._stop(trainer, f"the validation loss is {loss}")

    def look(self, trainer: pl.Trainer) -> None:
        """Raise Diverged if a loss since the last look was too much."""
        losses = torch.stack(self._unseen).tolist() if self._unseen else []
        self._unseen.clear()
        for loss in losses:
            if not math.isfinite(loss):
                self._stop(trainer, f"the loss is {loss}")
            self.streak = self.streak + 1 if loss >= self._limit else 0
            if self.streak >= PATIENCE:
                self._stop(trainer, f"the loss is {loss:.4g} nats, far more than a uniform guess for {PATIENCE} steps")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before anything is made of the epoch: its row, its words."""
        self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise Diverged if a loss was too much, or if the last step broke the weights that the next loss needs."""
        self.look(trainer)
        if not all(weights.isfinite().all() for weights in trainer.lightning_module.parameters()):
            self._stop(trainer, "weights are not finite")

    def _stop(self, trainer: pl.Trainer, what: str) -> None:
        clip = "clip harder than" if trainer.gradient_clip_val else "clip with"
        raise Diverged(
            f"training diverged at step {trainer.global_step} in epoch {trainer.current_epoch + 1}: {what}; start a "
            f"new run with a rate below optimizer.lr={current_lr(trainer.optimizers[0]):g}, or {clip} "
            f"trainer.gradient_clip_val={trainer.gradient_clip_val or 1}"
        )

    def state_dict(self) -> dict[str, Any]:
        """For how many steps the loss has been bad."""
        return {"streak": self.streak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.streak = int(state_dict["streak"])
