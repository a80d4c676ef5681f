"""What the weights at the ends of SGDR's cycles are worth together: their average and their ensemble."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from charlm.checkpoint.building import package_of
from charlm.checkpoint.storage import Store
from charlm.data.module import CharDataModule
from charlm.inference.combining import average, load_ensemble, write_average
from charlm.models.network import Network
from charlm.run.build import build_trainer
from charlm.run.fitting import interruptible
from charlm.run.settings import Settings
from charlm.training.module import CharLM

LAST = 3  # an early cycle's weights are too far away to be averaged, and predict too badly


def combine_cycles(
    folder: Path, count: int, data: CharDataModule, settings: Settings, store: Store, *, validate: bool
) -> dict[str, Any]:
    """Average the last of `count` cycle ends in `folder`, write ``average.ckpt``, and validate it and their ensemble.

    Returns the part of the summary about them; nothing for fewer than two.
    """
    ends = [folder / f"cycle-{number}.ckpt" for number in range(1, count + 1)]
    ends = [path for path in ends if path.exists()][-LAST:]
    if len(ends) < 2:
        return {}
    trust = [package_of(settings.model["_target_"])]
    averaged = average(ends, trust)
    write_average(averaged, ends[-1], folder / "average.ckpt", store)
    found: dict[str, Any] = {"cycles_combined": [path.stem for path in ends]}
    if validate:
        for name, model in {"average": averaged, "ensemble": load_ensemble(ends, trust)}.items():
            nats = validation_loss(model.network, data, settings, folder)
            if math.isfinite(nats):
                found[f"{name}_val_nats"] = nats
    return found


def validation_loss(network: Network, data: CharDataModule, settings: Settings, folder: Path) -> float:
    """Nats per character, on the same batches and with the same precision as val/nats in training."""
    model = CharLM(network)
    trainer = build_trainer(settings.trainer, folder.parent, [], None, validate=True)
    with interruptible(trainer):
        return float(trainer.validate(model, datamodule=data, verbose=False)[0]["val/nats"])
