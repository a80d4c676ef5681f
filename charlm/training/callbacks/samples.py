"""Samples from the model during training: in the terminal, in `samples.txt`, in a table on W&B."""

from __future__ import annotations

import itertools
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import WandbLogger

from charlm.checkpoint.storage import Store
from charlm.data.module import CharDataModule
from charlm.errors import OptionError, UsageError
from charlm.inference.language_model import LanguageModel
from charlm.models.network import Network
from charlm.options import NonNegative, Positive, PositiveInt, Text, checked
from charlm.text.vocab import normalise


def validated(trainer: pl.Trainer, pl_module: Any) -> Network:
    """The network whose loss is validated: the averaged one, if a callback averages the weights."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it undeclared
        averaged = getattr(callback, "_average_model", None) if isinstance(callback, WeightAveraging) else None
        if averaged is not None:
            pl_module = averaged.module
    network: Network = pl_module.network
    return network


COLUMNS = ["epoch", "step", "prompt", "temperature", "text"]


class Samples(pl.Callback):
    """Writes samples after an epoch and every few minutes, one for each prompt at each temperature.

    They are of the weights that are validated and saved: with ``callbacks=ema``, the averaged ones. `latest` is the
    first of those after the last epoch. Uses its own random generator with a fixed seed, so that
    training is not disturbed and samples of different times can be compared.
    """

    @checked
    def __init__(
        self,
        length: Annotated[PositiveInt, Field(description="Characters per sample.")] = 300,
        prompt: Annotated[
            Text | list[Text], Field(description="Text that the sample continues, or a list of texts.")
        ] = "",
        temperature: Annotated[
            NonNegative | list[NonNegative],
            Field(description="Sampling temperature, or a list; 0 is greedy."),
        ] = 0.8,
        every: Annotated[PositiveInt, Field(description="Epochs from one sample to the next.")] = 1,
        every_minutes: Annotated[
            Positive | None, Field(description="Minutes between two samples within an epoch; null: none there.")
        ] = None,
    ) -> None:
        self.prompts = prompt if isinstance(prompt, list) else [prompt]
        self.temperatures = temperature if isinstance(temperature, list) else [temperature]
        for name, values in {"prompt": self.prompts, "temperature": self.temperatures}.items():
            if not values:
                raise OptionError(name, "must have at least one value", [])
        self.length, self.every = length, every
        self._seconds = 60 * (every_minutes or math.inf)
        self.latest: str | None = None
        self.store: Store | None = None  # where to write; set by charlm.run.experiment
        self._rows: list[list[Any]] = []  # of COLUMNS; the step is None for the end of an epoch
        self._warned = False

    def check_run(self, data: CharDataModule, *, validate: bool) -> None:
        """Raise UsageError, before a run, for a prompt with characters that its model cannot know."""
        for prompt in self.prompts:
            try:
                data.vocab.encode(normalise(prompt, **data.normalisation))
            except UsageError as error:
                raise UsageError(f"callbacks.samples.prompt={prompt[:80]!r}: {error}; change the prompt") from None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore `samples.txt` to its contents at the time of the checkpoint."""
        self._write(trainer)
        self._due = time.monotonic() + self._seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write samples when they are due."""
        if time.monotonic() >= self._due and not trainer.is_last_batch:
            self._sample(trainer, validated(trainer, pl_module), trainer.global_step)
            self._due = time.monotonic() + self._seconds

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write samples."""
        self.latest = None
        if (trainer.current_epoch + 1) % self.every == 0:
            self.latest = self._sample(trainer, validated(trainer, pl_module), None)

    def _sample(self, trainer: Any, network: Network, step: int | None) -> str | None:
        """Write and log samples; returns the first, or None if there is none: that must not stop the run."""
        epoch = trainer.current_epoch + 1
        try:
            rows = [
                [epoch, step, prompt, temperature, self._text(network, trainer.datamodule, prompt, temperature)]
                for prompt, temperature in itertools.product(self.prompts, self.temperatures)
            ]
            self._rows += rows
            self._write(trainer)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_text("samples", columns=COLUMNS, data=self._rows, step=trainer.global_step - 1)
        except Exception as error:
            if not self._warned:
                print(f"warning: no sample of epoch {epoch}: {error}", file=sys.stderr)
            self._warned = True
            return None
        return str(rows[0][-1])

    def _text(self, network: Network, data: Any, prompt: str, temperature: float) -> str:
        model = LanguageModel(network.eval(), data.vocab, data.normalisation)
        try:
            text = model.generate(prompt, self.length, temperature=temperature, seed=0, unknown="skip")
        finally:
            network.train()
        return prompt + text

    def _write(self, trainer: Any) -> None:
        if self.store is not None:
            text = "".join(f"--- {self._heading(*row[:4])}\n{row[4]}\n" for row in self._rows)
            self.store.write(Path(trainer.default_root_dir, "samples.txt"), text.encode())

    def _heading(self, epoch: int, step: int | None, prompt: str, temperature: float) -> str:
        parts = [f"epoch {epoch}" if step is None else f"epoch {epoch}, step {step}"]
        if len(self.prompts) > 1:
            parts.append(f"prompt {prompt!r}")
        if len(self.temperatures) > 1:
            parts.append(f"temperature {temperature:g}")
        return ", ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """The samples so far."""
        return {"rows": list(self._rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the samples. Earlier ones, of one prompt and temperature, are pairs of epoch and text."""
        self._rows = []
        for epoch, *middle, text in state_dict["rows"]:
            step, prompt, temperature = middle or [None, self.prompts[0], self.temperatures[0]]
            step = None if step is None else int(step)
            self._rows.append([int(epoch), step, str(prompt), float(temperature), str(text)])
