"""Nothing accumulates: memory over many epochs; descriptors, threads and processes over many jobs in one process."""

from __future__ import annotations

import gc
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import wandb

import charlm.run.experiment
from tests.helpers import ROOT, SMALL, run_train, summary

MB = 1e6
TINY = SMALL[1:3]
PROC = Path("/proc/self")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROC.exists(), reason="reads /proc")]


class Held(NamedTuple):
    """The resources that this process holds."""

    memory: float  # megabytes
    descriptors: int
    threads: int
    children: int

    @classmethod
    def now(cls) -> Held:
        pages = int((PROC / "statm").read_text().split()[1])
        descriptors = len(os.listdir(PROC / "fd")) - 1  # without the one that lists them
        parents = [parent(path) for path in Path("/proc").glob("[0-9]*")]
        memory = pages * os.sysconf("SC_PAGESIZE") / MB
        return cls(memory, descriptors, len(os.listdir(PROC / "task")), parents.count(os.getpid()))


def parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # the process has ended in the meantime
        return None


FONTS = 6


class Recorder(pl.Callback):
    """Records the resources that the process holds at the end of each epoch."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with self.path.open("a") as file:
            print(*Held.now(), file=file)


def test_memory_stays_flat_over_the_epochs(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "text.txt").write_text("".join(rng.choice("abcdefgh ") for _ in range(36_000)))
    record = f"+callbacks.record={{_target_:{__name__}.Recorder,path:{tmp_path}/held.txt}}"
    command = [sys.executable, "train.py", *TINY, "trainer.max_epochs=11", "logger=wandb", "logger.mode=offline"]
    command += ["data=text", f"data.path={tmp_path}/text.txt", "data.bptt=10", "data.batch_size=8", record]
    command += ["trainer.log_every_n_steps=2", "checkpoint.every_steps=50", f"hydra.run.dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path / "run")["steps"] > 4000
    held = [Held(*map(float, line.split())) for line in (tmp_path / "held.txt").read_text().splitlines()]
    print(*held, sep="\n")
    assert len(held) == 11
    assert max(epoch.memory for epoch in held[1:]) - held[0].memory < 20
    # A file may be open for writing, and Matplotlib keeps the fonts of the picture open.
    assert max(epoch.descriptors for epoch in held) <= held[0].descriptors + 1 + FONTS
    assert max(epoch.threads for epoch in held) <= held[0].threads + 1
    assert {epoch.children for epoch in held} == {1}  # wandb-core


def test_thirty_jobs_in_one_process_leave_nothing_open(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, run, before = [], charlm.run.experiment.run, (sys.exit, sys.excepthook, logging.raiseExceptions)

    def job(settings: Any, which: Any) -> Any:
        value = run(settings, which)
        gc.collect()
        held.append(Held.now())
        assert wandb.run is None
        assert before == (sys.exit, sys.excepthook, logging.raiseExceptions)
        return value

    monkeypatch.setattr(charlm.run.experiment, "run", job)
    data = ["data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=16", "trainer.max_epochs=1"]
    jobs = ["-m", "seed=range(30)", "logger=wandb", f"hydra.sweep.dir={tmp_path}/sweep"]
    run_train(*jobs, *TINY, *data)
    print(*held, sep="\n")
    assert len(held) == 30 == len(list((tmp_path / "sweep").glob("*/summary.json")))
    descriptors = {job.descriptors for job in held}  # the sweep's table may be reading a record at this moment
    assert max(descriptors) <= min(descriptors) + 1 and held[-1].descriptors <= held[0].descriptors + 1
    assert {job.threads for job in held} == {held[0].threads}
    assert {job.children for job in held} == {held[0].children}
    # W&B keeps the latest hundred tables (wandb.sdk.artifacts.artifact_instance_cache), of 0.2 MB each.
    assert held[-1].memory - held[1].memory < 20
    files = list((tmp_path / "sweep").glob("*/wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == len(files) == 30
