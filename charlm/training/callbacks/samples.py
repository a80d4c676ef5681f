"""Samples from the model during training: in the terminal, in `samples.txt`, in a table on W&B."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.loggers import WandbLogger

from charlm.checkpoint.storage import Store
from charlm.inference.language_model import LanguageModel
from charlm.models.network import Network
from charlm.options import NonNegative, PositiveInt, Text, checked


class Samples(pl.Callback):
    """Writes a sample after an epoch; `latest` is the most recent one.

    Uses its own random generator with a fixed seed, so that training is not disturbed and samples of different epochs
    can be compared.
    """

    @checked
    def __init__(
        self,
        length: Annotated[PositiveInt, Field(description="Characters per sample.")] = 300,
        prompt: Annotated[Text, Field(description="Text that the sample continues.")] = "",
        temperature: Annotated[NonNegative, Field(description="Sampling temperature; 0 is greedy.")] = 0.8,
        every: Annotated[PositiveInt, Field(description="Epochs from one sample to the next.")] = 1,
    ) -> None:
        self.length, self.prompt, self.temperature, self.every = length, prompt, temperature, every
        self.latest: str | None = None
        self.store: Store | None = None  # where to write; set by charlm.run.experiment
        self._rows: list[list[Any]] = []
        self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore `samples.txt` to its contents at the time of the checkpoint."""
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write one sample."""
        if (trainer.current_epoch + 1) % self.every:
            self.latest = None
            return
        try:
            self.latest = self._write_sample(pl_module.network, trainer.datamodule)
        except Exception as error:  # a failing sample must not stop the run
            self.latest = None
            if not self._warned:
                print(f"warning: no sample of epoch {trainer.current_epoch + 1}: {error}", file=sys.stderr)
            self._warned = True
            return
        self._rows.append([trainer.current_epoch + 1, self.latest])
        self._write(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("samples", columns=["epoch", "text"], data=self._rows, step=trainer.global_step - 1)

    def _write_sample(self, network: Network, data: Any) -> str:
        model = LanguageModel(network.eval(), data.vocab, data.normalisation)
        options: dict[str, Any] = {"temperature": self.temperature, "seed": 0, "unknown": "skip"}
        try:
            return self.prompt + model.generate(self.prompt, self.length, **options)
        finally:
            network.train()

    def _write(self, trainer: Any) -> None:
        if self.store is not None:
            text = "".join(f"--- epoch {epoch}\n{sample}\n" for epoch, sample in self._rows)
            self.store.write(Path(trainer.default_root_dir, "samples.txt"), text.encode())

    def state_dict(self) -> dict[str, Any]:
        """The samples so far."""
        return {"rows": list(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the samples."""
        self._rows = [[int(epoch), str(sample)] for epoch, sample in state_dict["rows"]]
