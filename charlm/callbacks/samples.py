"""The model's own words after every epoch: in the terminal, in `samples.txt`, in a table on W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from charlm.language_model import LanguageModel
from charlm.options import number, whole


class Samples(pl.Callback):
    """Writes `length` characters after `prompt` every `every` epochs; `latest` is the last of them.

    Draws from a generator of its own, seeded alike each time, so training is not disturbed and samples
    of different epochs can be compared.
    """

    def __init__(self, length: int = 300, prompt: str = "", temperature: float = 0.8, every: int = 1) -> None:
        self.length = whole("callbacks.samples.length", length, 1)
        self.every = whole("callbacks.samples.every", every, 1)
        self.temperature = number("callbacks.samples.temperature", temperature)
        self.prompt = str(prompt)
        self.latest: str | None = None
        self._rows: list[list[Any]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write and keep one sample."""
        if (trainer.current_epoch + 1) % self.every:
            self.latest = None
            return
        data = trainer.datamodule
        network = pl_module.network.eval()
        model = LanguageModel(network, data.vocab, data.normalisation)
        self.latest = self.prompt + model.generate(
            self.prompt, self.length, temperature=self.temperature, seed=0, unknown="skip"
        )
        network.train()
        self._rows.append([trainer.current_epoch + 1, self.latest])
        with Path(trainer.default_root_dir, "samples.txt").open("a", encoding="utf-8", newline="") as file:
            file.write(f"--- epoch {trainer.current_epoch + 1}\n{self.latest}\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("samples", columns=["epoch", "text"], data=self._rows, step=trainer.global_step - 1)
