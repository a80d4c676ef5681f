"""The outcome of a run, as Python gets it and as ``summary.json`` keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from charlm.inference.html import card, image
from charlm.inference.language_model import LanguageModel, load
from charlm.training.callbacks.history import History
from charlm.training.callbacks.terminal import machine
from charlm.training.module import CharLM, parameter_count


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    `nats` is the best validation loss per character, or the best training loss without validation. `history` has the
    rows of ``metrics.csv``, one per epoch, and `summary` the content of ``summary.json``.
    """

    nats: float
    folder: Path
    history: list[dict[str, Any]] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    trust: tuple[str, ...] = field(default=(), repr=False)  # the package that defines the network

    def __fspath__(self) -> str:
        """The folder, so that ``charlm.load(result)`` opens the model."""
        return str(self.folder)

    @property
    def model(self) -> LanguageModel:
        """The model in the best checkpoint."""
        return load(self.folder, self.trust)

    def _repr_html_(self) -> str:
        facts = {
            "best loss": f"{self.nats:.4f} nats/char",
            "epochs": str(len(self.history)),
            "folder": str(self.folder),
        }
        return card("Result", facts, image(self.folder / "loss.png"))


def best_losses(history: History, *, validated: bool) -> dict[str, float]:
    """The best validation loss in nats, bits and perplexity; or the best training loss without validation."""
    if not validated:
        return {"best_train_nats": min(row["train_nats"] for row in history.rows)}
    nats = history.best_nats
    return {
        "best_val_nats": nats,
        "best_val_bpc": nats / math.log(2),
        "best_val_perplexity": math.exp(nats) if nats < 700 else math.inf,
    }


def facts(history: History, trainer: pl.Trainer, model: CharLM, seconds: float) -> dict[str, Any]:
    """What was trained, on what, and how long; `seconds` are those since the run was started or resumed."""
    device = trainer.strategy.root_device
    return {
        "epochs": len(history.rows),
        "steps": trainer.global_step,
        "parameters": parameter_count(model.network),
        "characters": history.characters,
        "characters_per_second": history.characters / history.training_seconds,
        "fit_seconds": history.fit_seconds,
        "seconds": seconds + history.earlier_seconds,
        "device": str(device),
        "machine": machine(device),
    }
