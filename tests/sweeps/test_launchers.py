"""Sweeps whose jobs run in processes of submitit and Ray, which are really killed, preempted and interrupted."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher

from charlm.errors import UsageError
from charlm.run.compose import cores
from charlm.run.suggest import explain
from charlm.sweeps.folder import SweepFolder
from charlm.sweeps.launchers import OneByOne
from charlm.sweeps.planning import check_launcher, jobs_at_once, threads_each
from tests.faults.compare import differences
from tests.helpers import ROOT, SMALL, of_extra
from tests.programs import environment, program
from tests.sweeps.conftest import Cluster
from tests.sweeps.processes import job_process, kill, processes, tree
from tests.sweeps.test_sweeps import start, table, wait_for_checkpoint

SUBMITIT = "hydra/launcher=submitit_local"


OPTIONS = ["checkpoint.every_steps=5", "trainer.max_epochs=30", "trainer.threads=1", "data=text", "data.bptt=8"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text."""
    folder = tmp_path_factory.mktemp("launchers")
    rng = random.Random(0)
    (folder / "text.txt").write_text("".join(rng.choice("abcd efgh") for _ in range(2000)))
    return folder


@pytest.fixture(scope="module")
def grid(here: Path) -> list[str]:
    return ["seed=1,2", *SMALL[:-1], f"data.path={here}/text.txt", *OPTIONS]


@pytest.fixture(scope="module")
def unbroken(here: Path, grid: list[str]) -> Path:
    """The sweep as it is without interruption, one job after the other."""
    sweep = here / "sweep"
    done = program("train.py", "-m", *grid, f"hydra.sweep.dir={sweep}", env=environment(here))
    assert done.status == 0, done
    return sweep


def assert_same(sweep: Path, unbroken: Path) -> None:
    for run in ("0_gru_text", "1_gru_text"):
        assert differences(unbroken / run, sweep / run) == []
    assert [{**row, "seconds": ""} for row in table(sweep)] == [{**row, "seconds": ""} for row in table(unbroken)]


def wait_until_gone(*words: str) -> None:
    deadline = time.monotonic() + 30
    while left := processes(*words):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def begun(grid: list[str], tmp_path: Path) -> tuple[Path, subprocess.Popen[str]]:
    """A sweep whose two jobs run in processes of submitit, and have saved; and its process."""
    of_extra("slurm", "hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    process = start(*grid, SUBMITIT, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    for number in (0, 1):
        wait_for_checkpoint(sweep, number)
    return sweep, process


def test_submitit_requeues_a_preempted_job_and_goes_on_without_a_killed_one(
    grid: list[str], unbroken: Path, tmp_path: Path
) -> None:
    sweep, process = begun(grid, tmp_path)
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
    assert_same(sweep, unbroken)


def test_a_stopped_and_then_killed_sweep_leaves_no_process_and_goes_on(
    grid: list[str], unbroken: Path, tmp_path: Path
) -> None:
    sweep, process = begun(grid, tmp_path)
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
    assert "interrupted" in {record.status for record in SweepFolder(sweep).records().values()}  # they did not go on
    done = program("train.py", "-m", f"resume={sweep}", "hydra/launcher=basic", env=environment(tmp_path))
    assert done.status == 0, done
    assert_same(sweep, unbroken)


def epochs_of(sweep: Path) -> list[int]:
    """How many epochs each job has ended."""
    return [record.epoch for record in SweepFolder(sweep).records().values()]


def test_jobs_of_a_killed_ray_node_go_on_elsewhere(
    grid: list[str], unbroken: Path, tmp_path: Path, cluster: Callable[[int], Cluster]
) -> None:
    of_extra("ray", "hydra_plugins.hydra_ray_launcher")
    address, (_, worker) = cluster(2)
    sweep = tmp_path / "sweep"
    ray = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]
    process = start(*grid, *ray, f"hydra.sweep.dir={os.path.relpath(sweep, ROOT)}", tmp_path=tmp_path)
    for number in (0, 1):
        wait_for_checkpoint(sweep, number)
    on_worker = [number for number in (0, 1) if job_process(sweep, number) in tree(worker.pid)]
    assert len(on_worker) == 1  # the other one is on the head
    kill(worker)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and err == "", err
    logs = [(sweep / f"{number}_gru_text/train.log").read_text() for number in (0, 1)]
    assert [number for number in (0, 1) if "from last.ckpt" in logs[number]] == on_worker
    assert_same(sweep, unbroken)


def test_a_ray_cluster_that_does_not_answer_is_named_at_once(tmp_path: Path) -> None:
    of_extra("ray", "hydra_plugins.hydra_ray_launcher")
    ray = ["hydra/launcher=ray", "hydra.launcher.ray.init.address=127.0.0.1:9"]
    began = time.monotonic()
    done = program("train.py", "-m", "seed=1,2", *ray, cwd=tmp_path, env=environment(tmp_path))
    assert done.is_refusal(
        "hydra.launcher.ray.init.address=127.0.0.1:9: no Ray cluster answers there", "ray start --head"
    )
    assert time.monotonic() < began + 30 and not list(tmp_path.glob("sweeps/*"))


class Recorder(Launcher):
    """Starts nothing; the first job is killed, and the second one fails before it has begun."""

    def __init__(self) -> None:
        self.launched: list[int] = []

    def setup(self, **given: Any) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.launched.append(initial_job_idx)
        if initial_job_idx == 3:
            raise RuntimeError("a sentence\nand more")
        if initial_job_idx == 4:
            return [JobReturn(_return_value=OSError("no disk"), status=JobStatus.FAILED)]
        return [JobReturn(_return_value=1.5, status=JobStatus.COMPLETED)]


def test_the_jobs_after_lost_ones_run_and_none_after_the_sweep_was_stopped() -> None:
    killed, recorder = [], Recorder()
    each = OneByOne(recorder, 1, lambda *what: killed.append(what), lambda: len(recorder.launched) == 3)
    returned = each.launch([[f"seed={n}"] for n in range(5)], 3)
    assert recorder.launched == [3, 4, 5] and killed == [(3, ["seed=0"], "a sentence"), (4, ["seed=1"], "no disk")]
    assert repr([job.return_value for job in returned]) == "[inf, inf, 1.5, nan, nan]"


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"_target_": "a.SlurmLauncher"}, "submitit_slurm needs a cluster, and there is no srun here"),
        ({"_target_": "a.LocalLauncher", "nodes": 2}, "hydra.launcher.nodes=2: this machine is one"),
        (
            {"_target_": "a.LocalLauncher", "nodes": 1, "cpus_per_task": 0},
            "hydra.launcher.cpus_per_task=0 runs nothing",
        ),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 0}}}, "ray.remote.num_cpus=0 runs nothing"),
    ],
)
def test_what_a_launcher_would_refuse_for_every_job_is_refused_at_once(
    launcher: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=re.escape(words)):
        check_launcher(launcher)


def test_a_refused_sweep_leaves_no_folder(tmp_path: Path) -> None:
    of_extra("slurm", "hydra_plugins.hydra_submitit_launcher")
    for option, words in {
        "nodes=2": "this machine is one",
        "nonsense=2": "write +hydra.launcher.nons",
    }.items():
        options = ["seed=1,2", SUBMITIT, f"hydra.launcher.{option}"]
        done = program("train.py", "-m", *options, cwd=tmp_path, env=environment(tmp_path))
        assert done.is_refusal(words) and not list(tmp_path.glob("sweeps/*"))


@pytest.mark.parametrize(
    ("launcher", "count", "at_once", "threads"),
    [
        ({"_target_": "a.LocalLauncher", "cpus_per_task": None}, 9, cores(), 1 if cores() > 1 else None),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": None}, 1, 1, None),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": 2 * cores()}, 9, 1, 2 * cores()),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": 4}, 9, 1, 4),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": None}, 9, 1, None),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {}}}, 9, cores(), 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": cores()}}}, 9, 1, cores()),
        ({"_target_": "a.BasicLauncher"}, 9, 1, None),
    ],
)
def test_each_job_has_as_many_threads_as_its_launcher_reserves(
    launcher: dict[str, Any], count: int, at_once: int, threads: int | None
) -> None:
    assert jobs_at_once(launcher, count) == at_once and threads_each(launcher, at_once) == threads


@pytest.mark.parametrize(
    ("launcher", "extra"), [("submitit_slurm", "slurm"), ("submitit_local", "slurm"), ("ray", "ray")]
)
def test_the_extra_of_a_launcher_is_named(launcher: str, extra: str) -> None:
    message = f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options in 'hydra/launcher':\n\tbasic"
    assert explain(HydraException(message)) == (
        f"there is no hydra/launcher={launcher}: install it with pip install -e '.[{extra}]'"
    )
