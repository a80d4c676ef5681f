"""Sweeps whose jobs run in processes of submitit and Ray, which are really killed, preempted and interrupted."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from charlm.sweeps.folder import SweepFolder
from tests.faults.compare import differences
from tests.helpers import ROOT, SMALL
from tests.programs import environment, program
from tests.sweeps.test_sweeps import start, table, wait_for_checkpoint

SUBMITIT = "hydra/launcher=submitit_local"


@pytest.fixture
def grid(text_file: Path) -> list[str]:
    options = ["checkpoint.every_steps=5", "trainer.max_epochs=30", "trainer.threads=1"]
    return ["seed=1,2", *SMALL[:-1], "data=text", f"data.path={text_file}", "data.bptt=8", *options]


def processes(*words: str) -> list[int]:
    """The processes with all of these words in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def job_process(sweep: Path, number: int) -> int:
    """The process of a job that submitit has started."""
    for process in processes("submitit.core._submit", str(sweep)):
        held = [os.readlink(file) for file in Path(f"/proc/{process}/fd").glob("*") if file.exists()]
        if str(sweep / f".jobs/{number}.lock") in held:
            return process
    raise AssertionError(f"job {number} does not run")


def wait_until_gone(*words: str) -> None:
    deadline = time.monotonic() + 30
    while left := processes(*words):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def unbroken(grid: list[str], tmp_path: Path) -> Path:
    sweep = tmp_path / "unbroken/sweep"
    assert program("train.py", "-m", *grid, f"hydra.sweep.dir={sweep}", env=environment(tmp_path)).status == 0
    return sweep


def test_submitit_requeues_a_preempted_job_and_goes_on_without_a_killed_one(grid: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    process = start(*grid, SUBMITIT, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    for number in (0, 1):
        wait_for_checkpoint(sweep, number)
    preempted, killed = job_process(sweep, 0), job_process(sweep, 1)
    os.kill(preempted, signal.SIGUSR1)
    os.kill(killed, signal.SIGKILL)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert "error: job 1 (seed=2): its process was killed, perhaps because the memory was full" in err
    assert (
        f"1 job failed; once that is fixed, resume with python train.py -m resume={os.path.relpath(sweep, ROOT)}" in err
    )
    assert "job 0 interrupted" in out and "job 0 finished" in out
    log = (sweep / "0_gru_text/train.log").read_text()
    assert re.findall(r"^resumed +from last.ckpt", log, re.MULTILINE) and log.count("epoch  1 ") < 2
    assert processes(str(sweep)) == []
    done = program("train.py", "-m", f"resume={sweep}", "hydra/launcher=basic", env=environment(tmp_path))
    assert done.status == 0, done
    whole = unbroken(grid, tmp_path)
    for run in ("0_gru_text", "1_gru_text"):
        assert differences(whole / run, sweep / run) == []
    assert [{**row, "seconds": ""} for row in table(sweep)] == [{**row, "seconds": ""} for row in table(whole)]


def test_a_stopped_and_then_killed_sweep_leaves_no_process_and_goes_on(grid: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    process = start(*grid, SUBMITIT, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    wait_for_checkpoint(sweep, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in err, err
    assert f"resume with\n  python train.py -m resume={os.path.relpath(sweep, ROOT)}" in err
    assert {record.status for record in SweepFolder(sweep).records().values()} == {"interrupted"}
    wait_until_gone(str(sweep))

    before = epochs_of(sweep)
    process = start(f"resume={sweep}", tmp_path=tmp_path)
    deadline = time.monotonic() + 60
    while epochs_of(sweep) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    wait_until_gone(str(sweep))
    done = program("train.py", "-m", f"resume={sweep}", "hydra/launcher=basic", env=environment(tmp_path))
    assert done.status == 0, done
    whole = unbroken(grid, tmp_path)
    for run in ("0_gru_text", "1_gru_text"):
        assert differences(whole / run, sweep / run) == []


def epochs_of(sweep: Path) -> list[int]:
    """How many epochs each job has ended."""
    return [record.epoch for record in SweepFolder(sweep).records().values()]
