"""Stops a diverging run while there is a good checkpoint left."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch

from charlm.errors import UsageError
from charlm.training.parameter_groups import current_lr
from charlm.training.ranks import GPU_INTERVAL

EXPLODED = 3.0  # times the loss of a uniform guess …
PATIENCE = 100  # … for this many steps in a row


class Diverged(UsageError):
    """The loss is NaN, infinite or far worse than a uniform guess."""


class DivergenceGuard(pl.Callback):
    """Raises Diverged for a loss that is NaN or infinite, or at least `EXPLODED`·ln V for `PATIENCE` steps in a row.

    `streak` is the number of steps in a row with a loss that high.
    """

    def __init__(self) -> None:
        self.streak = 0
        self._unchecked: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Set the highest acceptable loss and the interval of the checks."""
        self._limit = EXPLODED * math.log(max(2, len(trainer.datamodule.vocab)))
        self._every = 1 if pl_module.device.type == "cpu" else GPU_INTERVAL

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the losses at the interval."""
        self._unchecked.append(pl_module.step_nats)
        if len(self._unchecked) >= self._every:
            self.check_losses(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the validation loss."""
        if trainer.state.fn == "fit":
            self.check_losses(trainer)
            loss = trainer.callback_metrics["val/nats"].item()
            if not math.isfinite(loss):
                self._stop(trainer, f"the validation loss is {loss}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before other callbacks use the epoch's loss and weights."""
        self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise Diverged for a bad loss, or for weights that the last step broke before any loss could show it."""
        self.check_losses(trainer)
        trained = [weights for weights in trainer.lightning_module.parameters() if weights.requires_grad]
        if not all(weights.isfinite().all() for weights in trained):
            self._stop(trainer, "weights are not finite")

    def check_losses(self, trainer: pl.Trainer) -> None:
        """Raise Diverged for a bad training loss since the last check."""
        losses = torch.stack(self._unchecked).tolist() if self._unchecked else []
        self._unchecked.clear()
        for loss in losses:
            if not math.isfinite(loss):
                self._stop(trainer, f"the loss is {loss}")
            self.streak = self.streak + 1 if loss >= self._limit else 0
            if self.streak >= PATIENCE:
                self._stop(trainer, f"the loss is {loss:.4g} nats, far more than a uniform guess for {PATIENCE} steps")

    def _stop(self, trainer: pl.Trainer, problem: str) -> None:
        clip = "clip harder than" if trainer.gradient_clip_val else "clip with"
        raise Diverged(
            f"training diverged at step {trainer.global_step} in epoch {trainer.current_epoch + 1}: {problem}; start "
            f"a new run with a learning rate below optimizer.lr={current_lr(trainer.optimizers[0]):g}, or {clip} "
            f"trainer.gradient_clip_val={trainer.gradient_clip_val or 1}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The streak."""
        return {"streak": self.streak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the streak."""
        self.streak = int(state_dict["streak"])
