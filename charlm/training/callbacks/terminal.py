"""The terminal output of a run: a header, a progress bar, a line per epoch, and a final table."""

from __future__ import annotations

import math
import platform
import shlex
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from charlm.data.module import CharDataModule
from charlm.models.network import Network
from charlm.models.windowed import Windowed
from charlm.training.callbacks.history import History
from charlm.training.callbacks.samples import Samples
from charlm.training.module import parameter_count

DIVERGED = 2.0  # times the loss of a uniform guess
REFRESH = 0.2  # seconds between two updates of the bar; an update at each step would slow training down


def duration(seconds: float) -> str:
    """``75`` → ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def machine(device: torch.device) -> str:
    """The machine and software that a measurement depends on."""
    return f"{platform.machine()} {device_name(device)}, torch {torch.__version__.partition('+')[0]}"


def facts(rows: dict[str, str]) -> Table:
    """A table of names and values without borders."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def describe(corpus: str, data: CharDataModule, network: Network, folder: Path) -> dict[str, str]:
    """The rows of the header: the model, its corpus and the run folder."""
    unit = "windows" if data.options.split == "random" else "characters"
    sizes = ", ".join(f"{split} {size:,}" for split, size in data.sizes.items() if size)
    text = f"{corpus}, {len(data.vocab)} symbols; {sizes} {unit}"
    if data.extra:
        extra = " + ".join(f"{len(ids):,}" for ids in data.extra)
        text += f"; beside them {extra} characters, rows {':'.join(map(str, data.shares))}"
    family = network.network if isinstance(network, Windowed) else network
    return {
        "model": f"{type(family).__name__}, {parameter_count(network):,} parameters",
        "corpus": text,
        **({"text": files.describe(sum(map(len, (data.ids_N, *data.extra))))} if (files := data.text.files) else {}),
        "run": str(folder),
    }


def report(console: Console, summary: dict[str, Any], trust: str = "") -> None:
    """Print the final table and the command that samples from the model."""
    rows = {}
    if "best_val_nats" in summary:
        rows["best validation loss"] = (
            f"{summary['best_val_nats']:.4f} nats/char, {summary['best_val_bpc']:.3f} bpc, "
            f"perplexity {summary['best_val_perplexity']:.3f}"
        )
    else:
        rows["best training loss"] = f"{summary['best_train_nats']:.4f} nats/char (no validation split)"
    ends = len(summary.get("cycles_combined", []))
    for kind in ("average", "ensemble"):
        if f"{kind}_val_nats" in summary:
            rows[f"{kind} of {ends} cycle ends"] = f"{summary[f'{kind}_val_nats']:.4f} nats/char (validation)"
    if "test_nats" in summary:
        rows["test loss"] = f"{summary['test_nats']:.4f} nats/char"
    rows["corpus"] = summary["corpus"] + (" (substituted)" if summary["corpus_substituted"] else "")
    rows["speed"] = f"{summary['characters_per_second']:,.0f} characters/s"
    rows["time"] = f"{summary['seconds'] / 60:.1f} minutes, {summary['epochs']} epochs, {summary['steps']:,} steps"
    console.print("", facts(rows))
    # On its own line and never wrapped, so that it can be copied.
    console.print("[bold cyan]write more[/]", highlight=False)
    command = f"{trust}python sample.py --checkpoint {shlex.quote(summary['best_checkpoint'])}"
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


class Terminal(pl.Callback):
    """Shows the progress of a run, with the metrics in `history` and the text in `samples`.

    The bar is drawn only on a terminal; a log file gets complete lines.
    """

    def __init__(self, console: Console, header: dict[str, str], history: History, samples: Samples | None) -> None:
        self.console, self.header, self.history, self.samples = console, header, history, samples
        self._bar: Progress | None = None
        self._due = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the header and start the bar."""
        self.console.print(facts({**self.header, "device": device_name(trainer.strategy.root_device)}), "")
        if not self.console.is_terminal:
            return
        progress = ("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[loss]}")
        time_left = (TimeRemainingColumn(elapsed_when_finished=True), "left")
        self._bar = Progress(*progress, *time_left, console=self.console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=trainer.estimated_stepping_batches, loss="")
        self._bar.start()
        self._due = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the bar every `REFRESH` seconds."""
        if time.monotonic() >= self._due and self._bar is not None:
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                loss=f"train {pl_module.train_nats.compute():.3f}",  # mean of the epoch so far
                refresh=True,
            )
            self._due = time.monotonic() + REFRESH

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch and the sample."""
        row = self.history.rows[-1]
        width = len(str(trainer.max_epochs))
        line = f"epoch {row['epoch']:>{width}}   train {row['train_nats']:.4f}"
        if row["val_nats"] is not None:
            line += f"   val [bold]{row['val_nats']:.4f}[/bold]   {row['val_bpc']:.3f} bpc"
        line += f"   {row['characters_per_second']:,.0f} chars/s   {duration(row['seconds'])}"
        self.console.print(line, highlight=False)
        if not row["train_nats"] <= DIVERGED * math.log(len(trainer.datamodule.vocab)):  # also true for NaN
            advice = "try a lower optimizer.lr or trainer.gradient_clip_val=1; relu networks need data.mode=windows"
            self.console.print(f"  far worse than guessing: training diverges; {advice}", style="bold yellow")
        if self.samples is not None and self.samples.latest:
            text = " ".join(self.samples.latest.split())[: min(self.console.width - 4, 160)]
            self.console.print(f"  [dim italic]{escape(text)}[/dim italic]", highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error gets its own line."""
        self.on_train_end(trainer, pl_module)
