"""The weights at the end of each of SGDR's cycles: ``cycle-1.ckpt``, ``cycle-2.ckpt``, …"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from charlm.schedules import cycles_begun


class CycleCheckpoints(pl.Callback):
    """Saves a checkpoint when the learning rate is about to restart (fast.ai's `on_cycle_end`)."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if a cycle ended with the epoch (a cycle is a whole number of epochs)."""
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, CosineAnnealingWarmRestarts) and schedule.T_cur == 0:
                name = f"cycle-{cycles_begun(schedule)}.ckpt"
                trainer.save_checkpoint(Path(trainer.default_root_dir, "checkpoints", name))
