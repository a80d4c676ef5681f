"""The terminal output of a run: a header, a progress bar, a line per epoch, and a final table."""

from __future__ import annotations

import math
import platform
import shlex
import unicodedata
from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

from charlm.checkpoint.paths import program
from charlm.data.module import CharDataModule
from charlm.models.network import Network
from charlm.models.windowed import Windowed
from charlm.training.callbacks.history import History
from charlm.training.callbacks.samples import Samples
from charlm.training.module import parameter_count

DIVERGED = 2.0  # times the loss of a uniform guess
REFRESH = 0.2  # seconds between two updates of the bar; an update at each step would slow training down
SILENCE = 30  # seconds without a line in a log file, after which one tells the progress
LOWER = "try a lower optimizer.lr or trainer.gradient_clip_val=1; relu networks need data.mode=windows"


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``7.51`` → ``7.5 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def total_time(seconds: float) -> str:
    """``12.34`` → ``12.3 seconds``, ``123.4`` → ``2.1 minutes``."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def counted(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads()}"


def threads() -> str:
    """The number of PyTorch's threads."""
    return counted(torch.get_num_threads(), "thread")


def machine(device: torch.device) -> str:
    """The machine and software that a measurement depends on."""
    return f"{platform.machine()} {device_name(device)}, torch {torch.__version__.partition('+')[0]}"


def print_facts(console: Console, rows: dict[str, str]) -> None:
    """Print names and values in two columns, without blanks at the ends of lines."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        for number, line in enumerate(Text(value).wrap(console, max(console.width - width, 20), overflow="fold")):
            line.rstrip()
            start = Text((name if number == 0 else "").ljust(width), style="bold cyan")
            console.print(start + line, soft_wrap=True)


def preview(text: str, width: int) -> str:
    """The beginning of `text` on one line of `width` terminal columns; a Chinese character takes two of them."""
    line = "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))
    return set_cell_size(line, min(cell_len(line), width)).rstrip()


def describe(corpus: str, data: CharDataModule, network: Network, folder: Path) -> dict[str, str]:
    """The rows of the header: the model, its corpus and the run folder."""
    unit = "windows" if data.options.split == "random" else "characters"
    sizes = ", ".join(f"{split} {size:,}" for split, size in data.sizes.items() if size)
    text = f"{corpus}, {len(data.vocab)} symbols; {sizes} {unit}"
    if data.extra:
        extra = " + ".join(f"{len(ids):,}" for ids in data.extra)
        text += f"; beside them {extra} characters, rows {':'.join(map(str, data.shares))}"
    family = network.network if isinstance(network, Windowed) else network
    trained, every = parameter_count(network), sum(p.numel() for p in network.parameters())
    counts = f"{every:,} parameters" + (f", {every - trained:,} of them frozen" if trained < every else "")
    return {
        "model": f"{type(family).__name__}, {counts}",
        "corpus": text,
        **({"text": files.describe(sum(map(len, (data.ids_N, *data.extra))))} if (files := data.text.files) else {}),
        "run": str(folder),
    }


def report(
    console: Console,
    summary: dict[str, Any],
    train_nats: float,
    symbols: int,
    trust: str = "",
    upload: tuple[str, str] | None = None,
) -> None:
    """Print the final table, the command that samples from the model, and `upload`, a title and a command.

    A model of `symbols` characters that is far worse than guessing, also where it was trained (`train_nats`, its best
    training loss), is not one to sample from: say so instead.
    """
    rows = {}
    lowest = summary["best_val_nats"] if "best_val_nats" in summary else summary["best_train_nats"]
    guess = math.log(max(2, symbols))
    diverged = not min(lowest, train_nats) <= DIVERGED * guess
    if diverged:
        rows["training diverged"] = (
            f"the lowest loss is {lowest:.4g} nats/char, a uniform guess has {guess:.2f}; {LOWER}"
        )
    elif "best_val_nats" in summary:
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
    rows["time"] = ", ".join(
        [total_time(summary["seconds"]), counted(summary["epochs"], "epoch"), counted(summary["steps"], "step")]
    )
    console.print()
    print_facts(console, rows)
    if not diverged:
        folder = Path(summary["best_checkpoint"]).parent.parent
        command = f"{trust}python {program('sample.py')} --checkpoint {shlex.quote(str(folder))}"
        print_command(console, "write more", command)
    if upload:
        print_command(console, *upload)


def print_command(console: Console, title: str, command: str) -> None:
    """Print a command on its own line and never wrapped, so that it can be copied."""
    console.print(f"[bold cyan]{escape(title)}[/]", highlight=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


class Terminal(pl.Callback):
    """Shows the progress of a run, with the metrics in `history` and the text in `samples`.

    The bar is drawn only on a terminal; a log file gets complete lines, at least one every `SILENCE` seconds.
    """

    def __init__(self, console: Console, header: dict[str, str], history: History, samples: Samples | None) -> None:
        self.console, self.header, self.history, self.samples = console, header, history, samples
        self._bar: Progress | None = None
        self._due = math.inf
        self._since: tuple[int, float] | None = None  # characters and time, from which the speed is measured
        self._marked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the header and start the bar."""
        print_facts(self.console, {**self.header, "device": device_name(trainer.strategy.root_device)})
        self.console.print()
        self._began = trainer.global_step, monotonic()
        if not self.console.is_terminal:
            self._due = monotonic() + SILENCE
            return
        progress = ("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[loss]}")
        time_left = (TimeRemainingColumn(elapsed_when_finished=True), "left")
        self._bar = Progress(*progress, *time_left, console=self.console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=trainer.estimated_stepping_batches, loss="")
        self._bar.start()
        self._due = monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the bar every `REFRESH` seconds, or print a line after `SILENCE` seconds."""
        if self._bar is None and self._since is None:
            self._since = int(pl_module.train_nats.count), monotonic()
            return
        if monotonic() < self._due:
            return
        if self._bar is None:
            self._print_progress(trainer, pl_module)
        else:
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                loss=f"train {pl_module.train_nats.compute():.3f}",  # mean of the epoch so far
                refresh=True,
            )
            self._due = monotonic() + REFRESH

    def _print_progress(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Progress, speed and time left in one line."""
        now, step, count = monotonic(), trainer.global_step, int(pl_module.train_nats.count)
        first_step, began = self._began
        total = float(trainer.estimated_stepping_batches)
        done = f"{step / total:.0%}" if math.isfinite(total) else f"step {step:,}"
        before, since = self._since or (count, now)
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", done]
        parts.append(f"train {pl_module.train_nats.compute():.4f}")
        if now > since:
            parts.append(f"{(count - before) / (now - since):,.0f} chars/s")
        if step > first_step and math.isfinite(total):
            parts.append(f"{duration((total - step) * (now - began) / (step - first_step))} left")
        self.console.print("   ".join(parts), highlight=False)
        self._since, self._due = (count, now), now + SILENCE

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the speed from here, without validation."""
        self._since = None

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch and the sample."""
        row = self.history.rows[-1]
        width = len(str(trainer.max_epochs))
        line = f"epoch {row['epoch']:>{width}}   train {row['train_nats']:.4f}"
        if row["val_nats"] is not None:
            line += f"   val [bold]{row['val_nats']:.4f}[/bold]   {row['val_bpc']:.3f} bpc"
        line += f"   {row['characters_per_second']:,.0f} chars/s   {duration(row['seconds'])}"
        self._validates = trainer.enable_validation
        if row is self._best():
            line += " *" if self._marked else " * best"
            self._marked = True
        self.console.print(line, highlight=False, soft_wrap=True)
        self._since = None
        if self._bar is None:
            self._due = monotonic() + SILENCE
        if not row["train_nats"] <= DIVERGED * math.log(max(2, len(trainer.datamodule.vocab))):  # also true for NaN
            self.console.print(f"  far worse than guessing: training diverges; {LOWER}", style="bold yellow")
        if self.samples is not None and self.samples.latest:
            text = preview(self.samples.latest, min(self.console.width - 4, 160))
            self.console.print(f"  [dim italic]{escape(text)}[/dim italic]", highlight=False)

    def _best(self) -> dict[str, Any] | None:
        """The row of the lowest validation loss, or training loss without validation."""
        column = "val_nats" if self._validates else "train_nats"
        rows = [row for row in self.history.rows if row[column] is not None]
        return min(rows, key=lambda row: math.inf if math.isnan(row[column]) else row[column], default=None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error gets its own line."""
        self.on_train_end(trainer, pl_module)
