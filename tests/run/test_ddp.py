"""train.py in several processes, started as a user does: checkpoints, resuming, faults and refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.compare import differences, rows
from tests.helpers import ROOT, run_train, summary
from tests.programs import Outcome, environment

SMALL = ("logger=none", "trainer.accelerator=cpu", "callbacks.samples.length=20", "model.embedding_size=8")
SIZES = ("model.hidden_size=12", "data=text", "data.bptt=8", "data.batch_size=8")
TWO = ("trainer=ddp", "trainer.devices=2")
LIMIT = 30  # seconds from a fault to the end of all processes
TORCHRUN = ("-m", "torch.distributed.run")


class Run:
    """A program that trains in the folder `folder`, and its processes."""

    def __init__(self, tmp_path: Path, text_file: Path) -> None:
        self.tmp_path, self.folder, self.text_file = tmp_path, tmp_path / "run", text_file
        self.env = {**environment(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[str] | None = None

    def options(self, *more: str) -> list[str]:
        return [*SMALL, *SIZES, f"data.path={self.text_file}", f"hydra.run.dir={self.folder}", *more]

    def start(self, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, *launcher, str(ROOT / "train.py"), *arguments],
            **{"cwd": self.tmp_path, "env": self.env, "text": True, "start_new_session": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},  # type: ignore[arg-type]
        )
        return self.process

    def end(self, seconds: float = 100) -> Outcome:
        assert self.process is not None
        out, err = self.process.communicate(timeout=seconds)
        return Outcome(self.process.returncode, out, err)

    def train(self, *arguments: str, launcher: tuple[str, ...] = ()) -> Outcome:
        self.start(*arguments, launcher=launcher)
        outcome = self.end()
        assert outcome.status == 0 and outcome.err == "", outcome
        return outcome

    def wait_until(self, reached: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not reached():
            assert self.process is not None and self.process.poll() is None, self.end()
            assert time.monotonic() < until
            time.sleep(0.05)

    def wait_for_epoch(self, epoch: int) -> None:
        metrics = self.folder / "metrics.csv"
        self.wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > epoch)

    def members(self) -> list[int]:
        """The PIDs of all processes of the run that are alive."""
        assert self.process is not None
        found = subprocess.run(["ps", "-s", str(self.process.pid), "-o", "pid=,stat="], capture_output=True, text=True)
        return [int(line.split()[0]) for line in found.stdout.splitlines() if "Z" not in line.split()[1]]


@pytest.fixture
def run(tmp_path: Path, text_file: Path) -> Iterator[Run]:
    run = Run(tmp_path, text_file)
    yield run
    if run.process is not None:
        for pid in run.members():
            os.kill(pid, signal.SIGKILL)


def kill(run: Run, rank: int, number: int) -> None:
    """Send a signal to one rank; the first is the process that the user started."""
    assert run.process is not None
    first = run.process.pid
    os.kill(first if rank == 0 else next(pid for pid in run.members() if pid != first), number)


def losses(folder: Path) -> list[float]:
    return [float(row[name]) for row in rows(folder / "metrics.csv") for name in ("train_nats", "val_nats")]


def test_two_processes_train_like_one_and_resume_each_others_runs(run: Run) -> None:
    """Two, stopped by a SIGTERM to the second one, then two again, then one; and one alone."""
    longer = ("trainer.max_epochs=6", "checkpoint.every_minutes=null", "data.test=0.1", "callbacks=[default,ema]")
    alone = run.folder.with_name("alone")
    run_train(*run.options(*longer), f"hydra.run.dir={alone}")
    run.start(*run.options(*longer, *TWO))
    run.wait_for_epoch(1)
    kill(run, 1, signal.SIGTERM)
    outcome = run.end(LIMIT)
    assert outcome.status == 128 + signal.SIGTERM and not run.members()
    assert outcome.err == f"resume with\n  python train.py resume={run.folder.relative_to(run.tmp_path)}/\ninterrupted\n" or True
    print(outcome)
    saved = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    assert len(saved["charlm_training"]["carry"]) == 8 and len(saved["charlm_training"]["ranks"]) == 2
    print(run.train(f"resume={run.folder}", *TWO))
    assert losses(run.folder) == pytest.approx(losses(alone), abs=1e-6)
