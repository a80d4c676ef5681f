"""Stop when the validation loss no longer improves."""

from __future__ import annotations

from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from pydantic import Field
from pytorch_lightning.callbacks import EarlyStopping as LightningsEarlyStopping

from charlm.data.module import CharDataModule
from charlm.errors import UsageError
from charlm.options import NonNegative, PositiveInt, checked


class EarlyStopping(LightningsEarlyStopping):
    """Stops a run after `patience` validations in a row without a new lowest loss, or at once when it is not finite.

    Decides right after a validation, before the checkpoints are written. `reason` says why, once it has.
    """

    @checked
    def __init__(
        self,
        patience: Annotated[
            PositiveInt, Field(description="Validations in a row without improvement after which the run stops.")
        ] = 3,
        min_delta: Annotated[
            NonNegative, Field(description="Smallest improvement that counts, in nats per character.")
        ] = 0.0,
    ) -> None:
        super().__init__("val/nats", min_delta, patience, check_on_train_epoch_end=False)
        self.reason: str | None = None
        self._had_stopped = False  # according to the checkpoint that is resumed

    def check_run(self, data: CharDataModule, *, validate: bool) -> None:
        """Raise UsageError, before a run, if it has no validation."""
        if not validate:
            raise UsageError(
                "callbacks.early_stopping needs a validation loss: set data.val=0.1 (and not "
                "trainer.limit_val_batches=0), or leave early_stopping out"
            )

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count anew in a run that had stopped early and has been made longer."""
        if self._had_stopped and not trainer.should_stop:  # it is true where only min_epochs keeps the run going
            self.wait_count, self.reason, self._had_stopped = 0, None, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the run if it is time, and remember why."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            return
        self.reason = None  # of a run that went on
        if trainer.should_stop and not trainer.callback_metrics["val/nats"].isfinite():
            self.reason = f"stopped early in epoch {trainer.current_epoch + 1}: the validation loss is not finite"
        elif self.wait_count >= self.patience:
            times = "validation" if self.patience == 1 else f"{self.patience} validations"
            self.reason = (
                f"stopped early in epoch {trainer.current_epoch + 1}: the last {times} brought no new lowest loss "
                f"(callbacks.early_stopping.patience={self.patience})"
            )

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss, the validations since, and why the run stopped."""
        return {"best": self.best_score.item(), "waited": self.wait_count, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.best_score, self.wait_count = torch.tensor(float(state_dict["best"])), int(state_dict["waited"])
        self.reason = None if state_dict["reason"] is None else str(state_dict["reason"])
        self._had_stopped = self.reason is not None
