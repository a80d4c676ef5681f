"""Kill training runs with SIGKILL, resume them, and compare the results bit for bit with uninterrupted runs.

Each kind of run is trained once without interruption. Then it is trained again, killed at random moments (in a training
step, in validation, with a file half written, at the end of an epoch, or after a random time), resumed after each kill,
and compared: weights, optimiser, learning rates, carried state, random states, Lightning's counters, metrics.csv,
samples, the best, last and cycle checkpoints, and the summary.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from charlm.checkpoint.paths import quoted
from charlm.cli import exit_cleanly
from charlm.errors import UsageError
from tests.faults.child import MOMENTS, TRAIN
from tests.faults.compare import differences

ANY_TIME = "any time"
SMALL = ["logger=none", "trainer.accelerator=cpu", "checkpoint.every_steps=7", "callbacks.samples.length=20"]
SIZES = ["model.embedding_size=8", "model.hidden_size=12", "data.batch_size=8"]
KINDS = {
    "gru, two layers, dropout, step schedule, test split": [
        *("data=text", "data.bptt=8", "model.layers=2", "model.dropout=0.3", "trainer.max_epochs=3", "data.test=0.1"),
    ],
    "lstm, SGDR, two cycles": ["data=text", "data.bptt=8", "model=lstm", "schedule=sgdr", "trainer.max_epochs=3"],
    "gru, averaged weights": ["data=text", "data.bptt=8", "callbacks=ema", "trainer.max_epochs=3"],
    "rnn, random bptt, cosine": [
        *("data=text", "data.bptt=12", "data.bptt_jitter=3", "model=rnn", "schedule=cosine", "trainer.max_epochs=3"),
    ],
    "loops over shuffled windows": [
        *("data=text_windows", "model=char_loop", "data.batch_size=64", "data.stride=2", "trainer.max_epochs=2"),
    ],
    "gru, two texts mixed": ["data=mix", "data.bptt=8", "data.ratio=[3,1]", "trainer.max_epochs=3"],
    "gru, accumulated gradients, four validations an epoch": [
        *("data=text", "data.bptt=8", "trainer.accumulate_grad_batches=3", "+trainer.val_check_interval=0.25"),
        *("trainer.max_epochs=2",),
    ],
    "gru, no validation, clipped": [
        *("data=text", "data.bptt=8", "data.val=0.0", "trainer.gradient_clip_val=0.5", "trainer.max_epochs=2"),
    ],
}


@dataclass
class Result:
    """A run that was killed, and how it differs from the uninterrupted one."""

    kind: str
    kills: list[str]
    found: list[str]


def write_texts(folder: Path) -> list[Path]:
    """Write two texts of random words."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))) for _ in range(20)]
    paths = [folder / "text.txt", folder / "more.txt"]
    for path, size in zip(paths, (8000, 3000), strict=True):
        path.write_text(" ".join(rng.choice(words) for _ in range(size // 3))[:size])
    return paths


def overrides(kind: str, texts: list[Path], folder: Path) -> list[str]:
    """The overrides that train `kind` in `folder`."""
    one, *_ = names = [quoted(str(text)) for text in texts]
    path = f"data.paths=[{','.join(names)}]" if "data=mix" in KINDS[kind] else f"data.path={one}"
    return [*SMALL, *SIZES, *KINDS[kind], path, f"hydra.run.dir={quoted(str(folder))}"]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start Python with `arguments`, and append its output to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # fast on a busy machine, and equal in every run
    environment.pop("HYDRA_FULL_ERROR", None)
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment)


def finish(arguments: list[str], log: Path) -> None:
    """Run Python with `arguments`. Raises UsageError if it fails."""
    if start(arguments, log).wait():
        raise UsageError(f"a run failed without being killed; its output is in {log}:\n{log.read_text()[-2000:]}")


def killed_at(moment: str, which: float, arguments: list[str], folder: Path, log: Path) -> bool:
    """Train until the `which`-th `moment`, or for `which` seconds after a checkpoint. False if the run ended first."""
    if moment != ANY_TIME:
        status = start(["-m", "tests.faults.child", moment, str(int(which)), *arguments], log).wait()
    else:
        process = start([str(TRAIN), *arguments], log)
        before = last_written(folder)
        while process.poll() is None and last_written(folder) == before:
            time.sleep(0.02)
        time.sleep(which)
        process.kill()
        status = process.wait()
    if status not in (0, -signal.SIGKILL):
        raise UsageError(f"a run ended with status {status}; its output is in {log}:\n{log.read_text()[-2000:]}")
    return status != 0


def last_written(folder: Path) -> float:
    """When last.ckpt was written, or 0 if there is none."""
    last = folder / "checkpoints/last.ckpt"
    return last.stat().st_mtime if last.exists() else 0.0


def torture(
    kind: str, moments: list[str], unbroken: Path, texts: list[Path], folder: Path, rng: random.Random
) -> Result:
    """Train `kind`, killing it at each of `moments` in turn, and compare it with the run in `unbroken`."""
    counts = json.loads(unbroken.with_suffix(".json").read_text())
    seconds = json.loads((unbroken / "summary.json").read_text())["fit_seconds"]
    log, kills = folder.with_suffix(".log"), []
    for moment in moments:
        began = (folder / "checkpoints/last.ckpt").exists()
        arguments = [f"resume={quoted(str(folder))}"] if began else overrides(kind, texts, folder)
        if not began:
            shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint
        share = 1 / len(moments)  # leave something for the next kill
        which = rng.uniform(0, share * seconds)
        if moment != ANY_TIME:
            which = rng.randint(1, max(1, int(share * counts[moment]))) if counts.get(moment) else 1
        if killed_at(moment, which, arguments, folder, log):
            at = f"{which:.2f} s" if moment == ANY_TIME else f"{moment} {which:.0f}"
            kills.append(at)
        else:
            break  # the run finished before the chosen moment
    if not (folder / "checkpoints/last.ckpt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        finish([str(TRAIN), *overrides(kind, texts, folder)], log)
    else:
        finish([str(TRAIN), f"resume={quoted(str(folder))}"], log)
    return Result(kind, kills, differences(unbroken, folder))


def kill_and_compare(kills: int, seed: int, folder: Path, bar: Progress) -> list[Result]:
    """Cycle through the kinds of runs and the moments until there have been `kills` kills."""
    rng, texts = random.Random(seed), write_texts(folder)
    results: list[Result] = []
    kinds, moments = list(KINDS), [*MOMENTS, ANY_TIME]
    rng.shuffle(moments)
    done, tried, task = 0, 0, bar.add_task("kills", total=kills)
    while done < kills:
        number = len(results)
        kind = kinds[number % len(kinds)]
        unbroken = folder / f"unbroken-{number % len(kinds)}"
        if not unbroken.exists():
            counts = str(unbroken.with_suffix(".json"))
            arguments = ["-m", "tests.faults.child", "count", counts, *overrides(kind, texts, unbroken)]
            finish(arguments, unbroken.with_suffix(".log"))
        chosen = [moments[(tried + i) % len(moments)] for i in range(min(1 + number % 2, kills - done))]
        results.append(torture(kind, chosen, unbroken, texts, folder / f"killed-{number}", rng))
        tried, done = tried + len(chosen), done + len(results[-1].kills)
        bar.update(task, completed=done)
    return results


def main() -> None:
    """Kill, resume and compare runs as the command line says, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill a run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", type=Path, help="where to keep the runs (default: a temporary folder)")
    arguments = parser.parse_args()
    console = Console()
    if arguments.kills < 1:
        raise UsageError(f"--kills {arguments.kills} must be at least 1")
    with tempfile.TemporaryDirectory() as temporary, Progress(console=console, transient=True) as bar:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"--folder {folder} is not empty: choose a new one")
        results = kill_and_compare(arguments.kills, arguments.seed, folder, bar)
    table = Table("run", "killed at", "compared with the uninterrupted run")
    for result in results:
        table.add_row(
            result.kind,
            ", ".join(result.kills) or "-",
            f"{len(result.found)} differences" if result.found else "identical",
        )
    console.print(table)
    different = [result for result in results if result.found]
    for result in different:
        console.print(result.kind, *result.found[:30], sep="\n  ", markup=False, soft_wrap=True)
    killed = sum(len(result.kills) for result in results)
    console.print(f"{killed} kills in {len(results)} runs, of which {len(results) - len(different)} ended identically")
    if different:
        raise UsageError(f"{len(different)} runs differ from the uninterrupted ones")


if __name__ == "__main__":
    with exit_cleanly():
        main()
