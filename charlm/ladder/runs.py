"""A run of ``train.py`` for each row, in a process and a folder of its own."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import Progress

import charlm
from charlm.errors import UsageError
from charlm.ladder.lesson import LADDER, Entry

ROOT = Path(charlm.__file__).parents[1]
POLL = 0.5  # seconds between two looks at how far a row is


def command(entry: Entry, overrides: list[str]) -> list[str]:
    """The overrides that train an entry."""
    return [f"experiment={entry.experiment}", *entry.overrides, *overrides]


def place(entry: Entry, folder: Path, overrides: list[str]) -> Path:
    """Where an entry is trained: every command has a folder of its own."""
    parts = [entry.experiment, *entry.overrides, *overrides]
    name = "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)
    if len(name) > 100:
        name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return folder / name


def find_run(entry: Entry, folder: Path, overrides: list[str]) -> Path | None:
    """The folder of a finished run of this entry, or of a longer one that holds it."""
    longer = [e for e in LADDER if entry.epochs and e.long and e.experiment == entry.experiment]
    for candidate in [entry, *longer]:
        run = place(candidate, folder, overrides)
        said = run / ".hydra/overrides.yaml"
        wanted = [*command(candidate, overrides), "logger=csv"]
        if (run / "summary.json").is_file() and said.is_file() and OmegaConf.load(said) == wanted:
            return run
    return None


def train(entry: Entry, folder: Path, overrides: list[str], bar: Progress) -> Path:
    """Train an entry in a process of its own; what it prints goes to a file beside its folder."""
    run = place(entry, folder, overrides).resolve()
    log = run.with_name(f"{run.name}.log")
    if (run / "summary.json").exists():
        raise UsageError(f"{run} holds a finished run of another command: move it away, or choose another --folder")
    if run.exists():
        shutil.rmtree(run)  # of a run that was interrupted
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*command(entry, overrides), "logger=csv", f"hydra.run.dir='{run}'"]
    task = bar.add_task(f"row {entry.row}, epochs", total=None)
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
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
        lines = log.read_text().strip().splitlines() or ["it said nothing"]
        raise UsageError(f"row {entry.row} ended with status {process.returncode}: {lines[-1]} (all it said: {log})")
    return run


def epochs_of(run: Path) -> int | None:
    """How many epochs a run is to have, once it knows."""
    config = run / ".hydra/config.yaml"
    epochs = OmegaConf.select(OmegaConf.load(config), "trainer.max_epochs") if config.is_file() else None
    return epochs or None  # the file may be half written


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
