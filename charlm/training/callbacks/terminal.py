"""What a run looks like in the terminal: a header, a bar with the time left, a line an epoch, a table."""

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
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from charlm.data.module import CharDataModule
from charlm.models.network import Network
from charlm.models.windowed import Windowed
from charlm.training.callbacks.history import History
from charlm.training.callbacks.samples import Samples
from charlm.training.module import parameter_count

DIVERGED = 2.0  # times the loss of a uniform guess
REFRESH = 0.2  # seconds between two drawings of the bar; drawing at each step would slow training down


def duration(seconds: float) -> str:
    """``75`` → ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def device_name(device: torch.device) -> str:
    """What computes: the GPU's name, or how many threads of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def machine(device: torch.device) -> str:
    """What a measurement depends on."""
    return f"{platform.machine()} {device_name(device)}, torch {torch.__version__.partition('+')[0]}"


def facts(rows: dict[str, str], title: str | None = None) -> Table:
    """Names and values in two columns, without lines round them."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def describe(corpus: str, data: CharDataModule, network: Network, folder: Path) -> dict[str, str]:
    """The header: what is trained, on what, and where it is written."""
    unit = "windows" if data.options.split == "random" else "characters"
    sizes = ", ".join(f"{split} {size:,}" for split, size in data.sizes.items() if size)
    text = f"{corpus}, {len(data.vocab)} symbols; {sizes} {unit}"
    if data.extra:
        beside = " + ".join(f"{len(ids):,}" for ids in data.extra)
        text += f"; beside them {beside} characters, rows {':'.join(map(str, data.shares))}"
    family = network.network if isinstance(network, Windowed) else network
    return {
        "model": f"{type(family).__name__}, {parameter_count(network):,} parameters",
        "corpus": text,
        "run": str(folder),
    }


def report(console: Console, summary: dict[str, Any]) -> None:
    """The final table and the command that samples from the result."""
    rows = {}
    if "best_val_nats" in summary:
        rows["best validation loss"] = (
            f"{summary['best_val_nats']:.4f} nats/char, {summary['best_val_bpc']:.3f} bpc, "
            f"perplexity {summary['best_val_perplexity']:.3f}"
        )
    else:
        rows["best training loss"] = f"{summary['best_train_nats']:.4f} nats/char (no validation split)"
    if "test_nats" in summary:
        rows["test loss"] = f"{summary['test_nats']:.4f} nats/char"
    rows["corpus"] = summary["corpus"] + (" (substituted)" if summary["corpus_substituted"] else "")
    rows["speed"] = f"{summary['characters_per_second']:,.0f} characters/s"
    rows["time"] = f"{summary['seconds'] / 60:.1f} minutes, {summary['epochs']} epochs, {summary['steps']:,} steps"
    console.print("", facts(rows))
    # On a line of its own that is never wrapped, so that it can be copied.
    console.print("[bold cyan]write more[/]", highlight=False)
    command = f"python sample.py --checkpoint {shlex.quote(summary['best_checkpoint'])}"
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


class Terminal(pl.Callback):
    """Shows a run's progress; reads its figures from `history` and its words from `samples`.

    The bar is drawn only where the output is a terminal, so a log file gets whole lines only.
    """

    def __init__(self, console: Console, header: dict[str, str], history: History, samples: Samples | None) -> None:
        self.console, self.header, self.history, self.samples = console, header, history, samples
        self._bar: Progress | None = None
        self._due = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the header and start the bar."""
        name = device_name(trainer.strategy.root_device)
        self.console.print(facts({**self.header, "device": name}), "")
        if not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=trainer.estimated_stepping_batches, loss="")
        self._bar.start()
        self._due = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw the bar, when it is due."""
        if time.monotonic() >= self._due and self._bar is not None:
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                loss=f"train {pl_module.train_nats.compute():.3f}",  # the epoch so far
                refresh=True,
            )
            self._due = time.monotonic() + REFRESH

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line and what the model writes now."""
        row = self.history.rows[-1]
        width = len(str(trainer.max_epochs))
        line = f"epoch {row['epoch']:>{width}}   train {row['train_nats']:.4f}"
        if row["val_nats"] is not None:
            line += f"   val [bold]{row['val_nats']:.4f}[/bold]   {row['val_bpc']:.3f} bpc"
        line += f"   {row['characters_per_second']:,.0f} chars/s   {duration(row['seconds'])}"
        self.console.print(line, highlight=False)
        if not row["train_nats"] <= DIVERGED * math.log(len(trainer.datamodule.vocab)):  # NaN, too
            advice = "try a lower optimizer.lr or trainer.gradient_clip_val=1; relu networks need data.mode=windows"
            self.console.print(f"  far worse than guessing: training diverges; {advice}", style="bold yellow")
        if self.samples is not None and self.samples.latest:
            words = " ".join(self.samples.latest.split())[: min(self.console.width - 4, 160)]
            self.console.print(f"  [dim italic]{escape(words)}[/dim italic]", highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error stands on a line of its own."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
