"""Kill a search with SIGKILL, go on with it, and compare: ``python -m tests.faults.search --kills 20``.

A search with pruning is run once without interruption. Then it is run again, and killed at random moments until it
ends. Every trial must be bit for bit that of the uninterrupted search, and so must its table, but for the times.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from charlm.checkpoint.paths import quoted
from charlm.cli import exit_cleanly
from charlm.errors import UsageError
from tests.faults.__main__ import SIZES, SMALL, write_texts
from tests.faults.compare import differences
from tests.faults.sweeps import run, table

SEARCH = [
    *("task=search", "search.trials=12", "search.startup=3", "trainer.max_epochs=6", "data.bptt=8", "model=gru"),
    "search.space={optimizer.lr: {low: 1e-5, high: 1e-1, log: true}, model.output_dropout: [0.0, 0.2]}",
]


def command(folder: Path, text: Path) -> list[str]:
    """The arguments that begin the search in `folder`, or go on with it."""
    if (folder / ".jobs/sweep.json").exists():
        return [f"resume={quoted(str(folder))}"]
    data = ["data=text", f"data.path={quoted(str(text))}", "trainer.threads=1"]
    return [*SMALL, *SIZES, *data, *SEARCH, f"hydra.run.dir={quoted(str(folder))}"]


def kill_and_compare(kills: int, seed: int, here: Path, bar: Progress) -> tuple[int, list[str]]:
    """How often the search was killed, and how it then differs from the uninterrupted one."""
    rng, (text, _) = random.Random(seed), write_texts(here)
    unbroken, folder, log = here / "unbroken/search", here / "killed/search", here / "killed.log"
    started = time.monotonic()
    run(command(unbroken, text), here / "unbroken.log", unbroken)
    whole, done, task = time.monotonic() - started, 0, bar.add_task("kills", total=kills)
    # Each time, some work should be left for the next one.
    while done < kills and not run(command(folder, text), log, folder, rng.uniform(0, whole / kills)):
        done += 1
        bar.advance(task)
    run(command(folder, text), log, folder)
    if done < kills:
        return done, [f"the search ended before it was killed {kills} times"]
    trials = [row["folder"] for row in table(unbroken)]
    differ = [f"{trial}: {d}" for trial in trials for d in differences(unbroken / trial, folder / trial)]
    return done, differ + (["results.csv differs"] if table(unbroken) != table(folder) or len(trials) != 12 else [])


def main() -> None:
    """Kill, go on and compare as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.search", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill the search (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as bar:
        done, differ = kill_and_compare(arguments.kills, arguments.seed, Path(folder), bar)
    console.print(f"killed {done} times: {f'{len(differ)} differences' if differ else 'identical'}")
    console.print(*differ[:20], sep="\n", markup=False, soft_wrap=True)
    if differ:
        raise UsageError("the search differs from the uninterrupted one")


if __name__ == "__main__":
    with exit_cleanly():
        main()
