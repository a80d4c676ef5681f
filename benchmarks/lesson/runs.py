"""Train each row with ``train.py``, in a separate process and folder."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import Progress

import charlm
from benchmarks.lesson.lesson import LADDER, Entry
from charlm.cli import DEBUG
from charlm.errors import UsageError

ROOT = Path(charlm.__file__).parents[1]
POLL = 0.5  # seconds between updates of the progress bar


def command(entry: Entry, overrides: list[str]) -> list[str]:
    """The overrides with which an entry is trained."""
    return [f"experiment={entry.experiment}", *entry.overrides, *overrides, "logger=csv"]


def place(entry: Entry, folder: Path, overrides: list[str]) -> Path:
    """The folder in which an entry is trained: a different one for each command."""
    name = "-".join([entry.experiment, *(override.rpartition("=")[2] for override in entry.overrides)])
    if overrides:
        name += "-" + hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
    return folder / name


def overrides_of(run: Path) -> list[str] | None:
    """The overrides with which a run was started, or None if there is no run."""
    file = run / ".hydra/overrides.yaml"
    return list(OmegaConf.load(file)) if file.is_file() else None


def find_run(entry: Entry, folder: Path, overrides: list[str]) -> Path | None:
    """The folder of a finished run of this entry, or of a longer one that includes it."""
    longer = [e for e in LADDER if entry.epochs and e.long and e.experiment == entry.experiment]
    for candidate in [entry, *longer]:
        run = place(candidate, folder, overrides)
        if (run / "summary.json").is_file() and overrides_of(run) == command(candidate, overrides):
            return run
    return None


def train(entry: Entry, folder: Path, overrides: list[str], bar: Progress) -> Path:
    """Train an entry in a separate process, with its output in a log file next to its folder."""
    run = place(entry, folder, overrides).resolve()
    log = run.with_name(f"{run.name}.log")
    if run.exists() and any(run.iterdir()):
        if (run / "summary.json").exists() or overrides_of(run) != command(entry, overrides):
            raise UsageError(f"{run} holds something else: move it away, or choose another --folder")
    # What is left here is an interrupted run of this entry. Without a checkpoint, there is nothing in it to keep.
    resumable = (run / "checkpoints/last.ckpt").is_file()
    if not resumable:
        shutil.rmtree(run, ignore_errors=True)
    # Passed in the environment, the path needs no quoting. The process reports its errors as if started by hand.
    environment = {**os.environ, "CHARLM_LADDER_RUN": str(run)}
    if not DEBUG:
        environment.pop("HYDRA_FULL_ERROR", None)
    where = "${oc.env:CHARLM_LADDER_RUN}"
    arguments = [f"resume={where}"] if resumable else [*command(entry, overrides), f"hydra.run.dir={where}"]
    task = bar.add_task(f"row {entry.row}, epochs", total=None)
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)
                bar.update(task, total=epochs_of(run), completed=len(read_csv(run / "metrics.csv")))
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            bar.remove_task(task)
    if process.returncode or not (run / "summary.json").is_file():
        lines = log.read_text().strip().splitlines() or ["no output"]
        first = max((i for i, line in enumerate(lines) if line.startswith("error: ")), default=len(lines) - 1)
        reason = " ".join(lines[first:])
        raise UsageError(f"row {entry.row} ended with status {process.returncode}: {reason} (full output: {log})")
    return run


def epochs_of(run: Path) -> int | None:
    """The number of epochs of a run, once its config is written."""
    config = run / ".hydra/config.yaml"
    epochs = OmegaConf.select(OmegaConf.load(config), "trainer.max_epochs") if config.is_file() else None
    return epochs or None  # the file may be half-written


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, or none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
