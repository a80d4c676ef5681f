"""Puts into every checkpoint what is needed to use it without anything else."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from charlm.checkpoint import KEY


class SelfContained(pl.Callback):
    """Adds `entry` (see `charlm.checkpoint.pack`) to every checkpoint that is saved."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the entry."""
        checkpoint[KEY] = self.entry
