"""The model's own words after every epoch: in the terminal, in `samples.txt`, in a table on W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from charlm.errors import UsageError
from charlm.language_model import LanguageModel


class Samples(pl.Callback):
    """Writes `length` characters after `prompt` every `every` epochs; `latest` is the last of them.

    Draws from a generator of its own, seeded alike each time, so training is not disturbed and samples
    of different epochs can be compared.
    """

    def __init__(self, length: int = 300, prompt: str = "", temperature: float = 0.8, every: int = 1) -> None:
        if not isinstance(length, int) or length < 1 or not isinstance(every, int) or every < 1:
            raise UsageError("callbacks.samples: length and every must be whole numbers of at least 1")
        if not isinstance(temperature, int | float) or temperature < 0:
            raise UsageError(f"callbacks.samples.temperature={temperature} must be at least 0")
        self.length, self.prompt, self.temperature, self.every = length, str(prompt), temperature, every
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
