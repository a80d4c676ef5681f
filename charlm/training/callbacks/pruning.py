"""Stop a run that a search has no more hope for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from charlm.errors import first_line


class Pruning(pl.Callback):
    """Asks `hopeless` after every validation, with its number (from 1) and its loss, whether the run shall end.

    Such a run ends like one that stopped early, with its checkpoints and its summary; not in its last epoch, where
    nothing is gained. `reason` says why, once it has.
    """

    def __init__(self, hopeless: Callable[[int, float], bool]) -> None:
        self.hopeless = hopeless
        self.reason: str | None = None
        self._count, self._failed = 0, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask, and stop the run if need be."""
        if trainer.state.fn != "fit":
            return
        self._count += 1
        try:
            hopeless = self.hopeless(self._count, trainer.callback_metrics["val/nats"].item())
        except Exception as error:  # the run itself is well
            if not self._failed:
                Console(highlight=False).print(f"warning: this run cannot be pruned: {first_line(error)}", markup=False)
            hopeless, self._failed = False, True
        if hopeless and trainer.current_epoch + 1 != trainer.max_epochs:
            trainer.should_stop = True
            self.reason = f"pruned in epoch {trainer.current_epoch + 1}: other trials of the search had lower losses"

    def state_dict(self) -> dict[str, Any]:
        """The number of validations so far, and why the run ended."""
        return {"count": self._count, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self._count = int(state_dict["count"])
        self.reason = None if state_dict["reason"] is None else str(state_dict["reason"])
