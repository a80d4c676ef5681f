"""Kill whole sweeps with SIGKILL, go on with them, and compare: ``python -m tests.faults.sweeps --kills 20``.

A sweep of eight short jobs is run once without interruption. Then it is run again, with each launcher, and all of its
processes, or only the main one, are killed at random moments until it ends. Every job must be bit for bit that of the
uninterrupted sweep, and so must its table, but for the times.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from charlm.checkpoint.paths import quoted
from charlm.cli import exit_cleanly
from charlm.errors import UsageError
from tests.faults.__main__ import SIZES, SMALL, write_texts
from tests.faults.child import TRAIN
from tests.faults.compare import differences

GRID = ["model=rnn,gru", "model.dropout=0.0,0.2", "seed=1,2", "model.layers=2", "trainer.max_epochs=8", "data.bptt=8"]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}
JOBS = 8
STARTING = 4.0  # seconds that a sweep needs before its first job trains


def command(folder: Path, text: Path, launcher: str) -> list[str]:
    """The arguments that begin the sweep in `folder`, or go on with it."""
    if (folder / ".jobs/sweep.json").exists():
        return ["-m", f"resume={quoted(str(folder))}"]
    data = ["data=text", f"data.path={quoted(str(text))}", "trainer.threads=1"]
    return ["-m", *GRID, *SMALL, *SIZES, *data, *LAUNCHERS[launcher], f"hydra.sweep.dir={quoted(str(folder))}"]


def run(arguments: list[str], log: Path, folder: Path, seconds: float | None = None, whole: bool = True) -> bool:
    """Run train.py, and kill it so many `seconds` after a job has begun. Returns whether it ended before.

    Its workers are killed as well if `whole`; otherwise they have to notice.
    """
    started = time.time()
    with log.open("ab") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments], stdout=out, stderr=out, env=environment, start_new_session=True
        )
    while seconds is not None and process.poll() is None and last_record(folder) < started:
        time.sleep(0.02)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        if whole:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return False
    if status:
        raise UsageError(f"a sweep ended with status {status}; its output is in {log}:\n{log.read_text()[-2000:]}")
    return True


def last_record(folder: Path) -> float:
    """When a job last said how far it is."""
    return max((path.stat().st_mtime for path in folder.glob(".jobs/[0-9]*.json")), default=0.0)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv`` without times."""
    with (folder / "results.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def found(unbroken: Path, folder: Path) -> list[str]:
    """How the sweep in `folder` differs from the uninterrupted one."""
    jobs = sorted(path.name for path in unbroken.glob("*_text"))
    differ = [f"{name}: {d}" for name in jobs for d in differences(unbroken / name, folder / name)]
    if len(jobs) != JOBS:
        differ.append(f"there are {len(jobs)} jobs, not {JOBS}")
    return differ + (["results.csv differs"] if table(unbroken) != table(folder) else [])


def kill_and_compare(kills: int, seed: int, here: Path, launchers: list[str], bar: Progress) -> dict[str, list[str]]:
    """Share the kills among the launchers. Returns the differences by launcher, and how often each was killed."""
    rng, (text, _) = random.Random(seed), write_texts(here)
    unbroken = here / "unbroken/sweep"
    started = time.monotonic()
    run(command(unbroken, text, "basic"), here / "unbroken.log", unbroken)
    whole = time.monotonic() - started - STARTING
    outcome, task = {}, bar.add_task("kills", total=kills)
    for number, launcher in enumerate(launchers):
        folder, log, done = here / f"{launcher}/sweep", here / f"{launcher}.log", 0
        wanted = kills // len(launchers) + (number < kills % len(launchers))
        while done < wanted:
            # Each time, some work should be left for the next one; two jobs at once need half of the time.
            seconds = rng.uniform(0, 0.5 * whole / wanted)
            if run(command(folder, text, launcher), log, folder, seconds, rng.random() < 0.7):
                break
            done += 1
            bar.advance(task)
        run(command(folder, text, launcher), log, folder)
        differ = found(unbroken, folder)
        if done < wanted:
            differ.append(f"the sweep ended before it was killed {wanted} times")
        outcome[f"{launcher}, killed {done} times"] = differ
    return outcome


def main() -> None:
    """Kill, go on and compare as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sweeps", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill a sweep (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--launcher", choices=LAUNCHERS, nargs="+", default=list(LAUNCHERS), help="default: all")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as bar:
        outcome = kill_and_compare(arguments.kills, arguments.seed, Path(folder), arguments.launcher, bar)
    for name, differ in outcome.items():
        console.print(f"{name}: {f'{len(differ)} differences' if differ else 'identical'}")
        console.print(*differ[:20], sep="\n", markup=False, soft_wrap=True)
    if any(outcome.values()):
        raise UsageError("a sweep differs from the uninterrupted one")


if __name__ == "__main__":
    with exit_cleanly():
        main()
