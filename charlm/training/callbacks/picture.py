"""``loss.png``: the loss curves of a run, drawn while it trains."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from charlm.checkpoint.storage import Store
from charlm.curves import picture
from charlm.training.callbacks.history import History
from charlm.training.parameter_groups import current_lr

SHARE = 0.05  # of the time may go into drawing, besides the last picture
RATES, MOST = 40, 1000  # learning rates noted in an epoch, and in all
FIRST = 5  # seconds before the first picture


class LossPicture(pl.Callback):
    """Draws the epochs in `history` to `path` after an epoch, as often as `SHARE` allows, and when training ends.

    `rates` has the learning rate at evenly spaced steps, as (epochs trained, learning rate); it is kept in checkpoints.
    In a notebook, the picture is also shown below the cell, and kept up to date there.
    """

    def __init__(self, path: Path, history: History, store: Store) -> None:
        self.path, self.history, self.store = path, history, store
        self.rates: list[tuple[float, float]] = []
        self._seen, self._spacing = 0, 1  # steps that could be noted so far; every how many of them is
        self._drawn = 0  # epochs in the picture
        self._display: Any = None
        self._failed = False

    optional_state = True  # a picture must not keep a run from being resumed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait a little, because the first picture takes longer: it loads Matplotlib."""
        self._drawn = len(self.history.rows)  # of a resumed run
        self._due = time.monotonic() + (0 if in_notebook() else FIRST)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of the coming step, some times an epoch."""
        batches = trainer.num_training_batches
        if batch_idx % max(1, int(batches) // RATES):
            return
        if self._seen % self._spacing == 0:
            self.rates.append((trainer.current_epoch + batch_idx / batches, current_lr(trainer.optimizers[0])))
        self._seen += 1
        if len(self.rates) > MOST:
            self.rates, self._spacing = self.rates[::2], 2 * self._spacing

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw if enough time has passed since the last picture."""
        if time.monotonic() >= self._due:
            self._draw()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what is not drawn yet."""
        if self._drawn < len(self.history.rows):
            self._draw()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw before the program ends."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The learning rates so far."""
        return {"rates": list(self.rates), "seen": self._seen, "spacing": self._spacing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, if they are what `state_dict` returns."""
        with suppress(KeyError, TypeError, ValueError):
            rates = [(float(epoch), float(rate)) for epoch, rate in state_dict["rates"]]
            self._seen, self._spacing, self.rates = int(state_dict["seen"]), max(1, int(state_dict["spacing"])), rates

    def _draw(self) -> None:
        started = time.monotonic()
        try:
            png = picture(self.history.rows, self.path.parent.name, self.rates)
            self.store.write(self.path, png)
            self._show(png)
        except Exception as error:  # a missing picture must not stop the run
            if not self._failed:
                print(f"warning: no {self.path.name}: {error}", file=sys.stderr)
            self._failed = True
        self._drawn = len(self.history.rows)
        now = time.monotonic()
        self._due = now + (now - started) * (1 / SHARE - 1)

    def _show(self, png: bytes) -> None:
        """Show the picture in the notebook, or replace the one that is shown."""
        if not in_notebook():
            return
        from IPython.display import Image, display

        if self._display is None:
            self._display = display(Image(png), display_id=True)
        else:
            self._display.update(Image(png))


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and shell.has_trait("kernel")
