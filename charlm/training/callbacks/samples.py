"""The model's own words after every epoch: in the terminal, in `samples.txt`, in a table on W&B."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from charlm.checkpoint.storage import Store
from charlm.checks import check_int, check_number
from charlm.inference.language_model import LanguageModel
from charlm.models.network import Network


class Samples(pl.Callback):
    """Writes `length` characters after `prompt` every `every` epochs; `latest` is the last of them.

    Draws from a generator of its own, seeded alike each time, so training is not disturbed and samples
    of different epochs can be compared.
    """

    def __init__(self, length: int = 300, prompt: str = "", temperature: float = 0.8, every: int = 1) -> None:
        self.length = check_int("callbacks.samples.length", length, 1)
        self.every = check_int("callbacks.samples.every", every, 1)
        self.temperature = check_number("callbacks.samples.temperature", temperature)
        self.prompt = str(prompt)
        self.latest: str | None = None
        self.store: Store | None = None  # where to write; charlm.run.experiment gives the run's own
        self._rows: list[list[Any]] = []
        self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Leave in the file what a resumed run had written when its checkpoint was."""
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write and keep one sample."""
        if (trainer.current_epoch + 1) % self.every:
            self.latest = None
            return
        try:
            self.latest = self._write_sample(pl_module.network, trainer.datamodule)
        except Exception as error:  # an observer never stops a run
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
            text = "".join(f"--- epoch {epoch}\n{words}\n" for epoch, words in self._rows)
            self.store.write(Path(trainer.default_root_dir, "samples.txt"), text.encode())

    def state_dict(self) -> dict[str, Any]:
        """The samples so far."""
        return {"rows": list(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._rows = [[int(epoch), str(words)] for epoch, words in state_dict["rows"]]
