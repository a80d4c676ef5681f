"""train.py in several processes, started as a user does: checkpoints, resuming, faults and refusals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import charlm
from charlm.errors import UsageError
from charlm.run.compose import Job, compose_job
from charlm.run.settings import TrainerOptions
from charlm.run.together import Together, check_processes, notices
from tests.faults.compare import differences, rows
from tests.helpers import ROOT, run_train, summary
from tests.programs import Outcome, environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

SMALL = ("logger=none", "trainer.accelerator=cpu", "callbacks.samples.length=20", "model.embedding_size=8")
SIZES = ("model.hidden_size=12", "data=text", "data.bptt=8", "data.batch_size=8")
TWO = ("trainer=ddp", "trainer.devices=2")
LIMIT = 30  # seconds from a fault to the end of all processes
INTERRUPTED = "\nstopping after this step; interrupt again to stop at once\nresume with\n"


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
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
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
        """The PIDs of all processes of the run that are alive, wherever they are: they have its environment."""
        pids = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [pid for pid in pids if environment_of(pid).get("XDG_CACHE_HOME") == self.env["XDG_CACHE_HOME"]]


def environment_of(pid: int) -> dict[str, str]:
    """That of a process; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def run(tmp_path: Path, text_file: Path) -> Iterator[Run]:
    run = Run(tmp_path, text_file)
    yield run
    for pid in run.members():
        os.kill(pid, signal.SIGKILL)
    if run.process is not None:
        run.process.communicate()  # closes its pipes


def kill(run: Run, rank: int, number: int) -> None:
    """Send a signal to one rank; the first is the process that the user started."""
    assert run.process is not None
    first = run.process.pid
    os.kill(first if rank == 0 else next(pid for pid in run.members() if pid != first), number)


def kill_all(run: Run, number: int) -> None:
    assert run.process is not None
    os.killpg(run.process.pid, number)


def losses(folder: Path) -> list[float]:
    return [float(row[name]) for row in rows(folder / "metrics.csv") for name in ("train_nats", "val_nats")]


def test_a_killed_run_resumes_bit_for_bit(run: Run) -> None:
    """With dropout, for which each process has random numbers of its own; killed by a SIGKILL to the second one."""
    longer = ["trainer.max_epochs=6", "checkpoint.every_steps=7", "data.test=0.1", "callbacks=[default,ema]"]
    options = run.options(*longer, *TWO, "model.layers=2", "model.dropout=0.3")
    run.train(*options)
    unbroken = run.folder.rename(run.folder.with_name("unbroken"))
    run.start(*options)
    run.wait_for_epoch(1)
    kill(run, 1, signal.SIGKILL)
    outcome = run.end(LIMIT)
    assert not run.members() and outcome.is_refusal("process 1 of this run", "was ended by SIGKILL: resume it with")
    assert len(rows(run.folder / "metrics.csv")) < 6
    run.train("resume=run/")
    assert differences(unbroken, run.folder) == []
    state = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["charlm_training"]
    assert len(state["carry"]) == 8  # rows, as of one process
    randoms = [random["torch"] for random in state["ranks"]]
    assert len(randoms) == 2 and not torch.equal(*randoms) and torch.equal(randoms[0], state["random"]["torch"])


FAULTS: dict[str, tuple[Callable[[Run], None], int, str]] = {
    "SIGTERM to the first": (lambda run: kill(run, 0, signal.SIGTERM), 143, INTERRUPTED),
    "SIGTERM to the second": (lambda run: kill(run, 1, signal.SIGTERM), 143, "resume with\n"),
    "Ctrl-C": (lambda run: kill_all(run, signal.SIGINT), 130, INTERRUPTED),
    "SIGKILL to the first": (
        lambda run: kill(run, 0, signal.SIGKILL),
        -9,
        "error: process 1: process 0 of this run was ended; resume it with python ",
    ),
    "SIGKILL to all": (lambda run: kill_all(run, signal.SIGKILL), -9, ""),
}
QUICK = {"SIGTERM to the second"}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAULTS]
)
def test_all_processes_end_and_one_goes_on(fault: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on in one process and has the losses of one that never was several."""
    act, status, said = FAULTS[fault]
    longer = ("trainer.max_epochs=20", "checkpoint.every_steps=7")
    alone = run.folder.with_name("alone")
    run_train(*run.options(*longer), f"hydra.run.dir={alone}")
    run.start(*run.options(*longer, *TWO))
    run.wait_for_epoch(1)
    act(run)
    outcome = run.end(LIMIT)
    run_ended = time.monotonic()
    while run.members():
        assert time.monotonic() < run_ended + LIMIT
        time.sleep(0.1)
    assert outcome.status == status and outcome.err.startswith(said) and outcome.err.count("\n") <= 5, outcome
    assert bool(outcome.err) == bool(said) and "Traceback" not in outcome.err
    assert len(rows(run.folder / "metrics.csv")) < 20
    capsys.readouterr()
    run_train(f"resume={run.folder}", "trainer.devices=1")
    assert "this run trained in 2 processes before and goes on in 1" in capsys.readouterr().out.replace("\n", " ")
    assert losses(run.folder) == pytest.approx(losses(alone), abs=1e-5)
    assert sorted(path.name for path in run.tmp_path.iterdir() if path.is_dir()) == ["alone", "run"]


@pytest.mark.slow
def test_processes_whose_first_one_was_killed_while_they_start_end(run: Run) -> None:
    run.start(*run.options("trainer.max_epochs=500", *TWO))
    run.wait_until(lambda: len(run.members()) == 2)
    kill(run, 0, signal.SIGKILL)
    run.end(LIMIT)
    until = time.monotonic() + LIMIT
    while run.members():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_a_start_can_be_interrupted(number: int, seconds: float, run: Run) -> None:
    """While the second process loads its modules; and when it is, or soon will be, ready. It stops after one step."""
    run.start(*run.options("trainer.max_epochs=500", *TWO))
    run.wait_until(lambda: len(run.members()) == 2)
    time.sleep(seconds)
    kill_all(run, number)
    outcome = run.end(LIMIT)
    assert outcome.status == 128 + number and not run.members()
    assert outcome.err.startswith(INTERRUPTED) and outcome.err.endswith("\ninterrupted\n")
    assert (run.folder / "checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_a_folder_that_was_deleted_is_made_again(run: Run) -> None:
    run.start(*run.options("trainer.max_epochs=9", *TWO))
    run.wait_for_epoch(2)
    run.folder.rename(run.folder.with_name("gone"))
    outcome = run.end()
    assert outcome.status == 0 and outcome.err == "", outcome
    assert (run.folder / "checkpoints/best.ckpt").exists() and len(rows(run.folder / "metrics.csv")) == 9


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_three(run: Run) -> None:
    run_train(*run.options("trainer.max_epochs=6", "data.batch_size=6"))
    alone = shutil.copytree(run.folder, run.folder.with_name("alone"))
    run_train(f"resume={alone}", "trainer.max_epochs=9")
    run.train(f"resume={run.folder}", "trainer.max_epochs=9", "trainer.strategy=ddp", "trainer.devices=3")
    assert losses(run.folder) == pytest.approx(losses(alone), abs=1e-5)
    assert summary(run.folder)["processes"] == 3


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("BreaksInRankOne", ["training diverged at step", "the loss is nan", "checkpoints from before: run/"]),
        pytest.param("RunsOutOfMemoryInRankOne", ["process 1 of this run", "status 2: resume"], marks=pytest.mark.slow),
        pytest.param("UnusedWeight", ["trainer.strategy=ddp_find_unused_parameters_true"], marks=pytest.mark.slow),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all(model: str, named: list[str], run: Run) -> None:
    options = run.options("trainer.max_epochs=9", f"model._target_=tests.families.{model}", "checkpoint.every_steps=7")
    run.start(*options, *TWO)
    outcome = run.end()
    assert not run.members()
    if model == "RunsOutOfMemoryInRankOne":
        first, _, rest = outcome.err.partition("\n")
        assert first.startswith("error: process 1: there is not enough memory"), outcome
        outcome = Outcome(outcome.status, outcome.out, rest)
    assert outcome.is_refusal(*named)


@pytest.mark.slow
def test_a_model_with_unused_parameters_can_be_trained(run: Run) -> None:
    run.train(
        *run.options("trainer.max_epochs=1", "model._target_=tests.families.UnusedWeight", *TWO),
        "trainer.strategy=ddp_find_unused_parameters_true",
    )


def torchrun(*options: str) -> tuple[str, ...]:
    return "-m", "torch.distributed.run", *options


@pytest.mark.slow
def test_torchrun_starts_the_processes(run: Run) -> None:
    """One run folder, that of the first process, and what `trainer=ddp` alone gives."""
    options = [option for option in run.options("trainer.max_epochs=2", *TWO) if "hydra.run.dir" not in option]
    run.train(*options, launcher=torchrun("--standalone", "--nproc_per_node=2"))
    (folder,) = (run.tmp_path / "runs").iterdir()
    run.train(*run.options("trainer.max_epochs=2", *TWO))
    assert differences(folder, run.folder) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_machines_train_like_one(run: Run) -> None:
    """Two torchruns, which know only the address of the first, as on two machines."""
    options = run.options("trainer.max_epochs=2", "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2")
    port, where = free_port(), [run.tmp_path, run.tmp_path / "elsewhere"]
    where[1].mkdir()
    machines = []
    for number, folder in enumerate(where):
        place = ("--nnodes=2", "--nproc_per_node=1", f"--node_rank={number}")
        launcher = torchrun(*place, "--master_addr=127.0.0.1", f"--master_port={port}")
        run.tmp_path = folder
        machines.append(run.start(*options, launcher=launcher))
    outputs = [machine.communicate(timeout=100) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "processes  2, each with 4 rows" in outputs[0][0] and outputs[1][0] == "" and not list(where[1].iterdir())
    alone = run.folder.with_name("alone")
    run_train(*run.options("trainer.max_epochs=2"), f"hydra.run.dir={alone}")
    assert losses(run.folder) == pytest.approx(losses(alone), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_is_stopped_by_a_signal_to_one_process(rank: int, run: Run) -> None:
    run.start(*run.options("trainer.max_epochs=500", *TWO), launcher=torchrun("--standalone", "--nproc_per_node=2"))
    run.wait_for_epoch(1)
    assert run.process is not None
    workers = [pid for pid in run.members() if environment_of(pid).get("RANK") == str(rank)]
    os.kill(workers[0], signal.SIGTERM)
    outcome = run.end(2 * LIMIT + 30)  # torchrun itself gives the other processes 30 seconds to end
    assert outcome.status != 0 and not run.members()
    assert "resume with\n  python " in outcome.err and "\ninterrupted\n" in outcome.err


@pytest.mark.slow
def test_orphans_of_torchrun_save_and_end(run: Run) -> None:
    run.start(*run.options("trainer.max_epochs=500", *TWO), launcher=torchrun("--standalone", "--nproc_per_node=2"))
    run.wait_for_epoch(1)
    assert run.process is not None
    run.process.kill()
    until = time.monotonic() + LIMIT
    while run.members():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (run.folder / "checkpoints/last.ckpt").exists()


# Refusals, before any process is started.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["data.batch_size=7"], ["data.batch_size=7 cannot be divided among 2 processes", "data.batch_size=6 or 8"]),
        (["data.batch_size=1"], ["2 processes are more than the rows of a batch", "at most 1", "data.batch_size=2"]),
        (["trainer.devices=5"], ["data.batch_size=8", "5 processes", "nearest that can is data.batch_size=10"]),
        (["trainer.devices=9"], ["9 processes are more than", "start at most 8, or set data.batch_size=9"]),
        (["trainer.devices=0"], ["trainer.devices=0"]),
        (["trainer.devices=[0,0]"], ["trainer.devices=[0, 0] must name each device once"]),
        (["trainer.strategy=fsdp"], ["trainer.strategy='fsdp' must be 'auto', 'ddp'"]),
        (["trainer.num_nodes=2"], ["trainer.num_nodes=2 needs torchrun on each machine"]),
        (["task=lr_find"], ["task='lr_find' looks at a run in one process", "trainer.devices=1"]),
        (["trainer.devices=3", "data.bptt=300"], ["batch_size=8 (5 for this text)", "3 processes", "batch_size=3"]),
        (["trainer.devices=6", "data.bptt=300"], ["6 processes", "start at most 5, or lower data.bptt=300"]),
    ],
)
def test_what_cannot_be_trained_together_is_refused(
    options: list[str],
    named: list[str],
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", str(ROOT / "train.py")])
    with pytest.raises(SystemExit) as caught:
        run_train(*run.options(*TWO, *options))
    err = capsys.readouterr().err
    assert Outcome(int(str(caught.value.code)), "", err).is_refusal(*named)
    assert not run.folder.exists()


def test_a_port_in_use_is_refused(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run.env["MASTER_PORT"] = port = str(taken.getsockname()[1])
        run.start(*run.options(*TWO))
        assert run.end().is_refusal(f"MASTER_PORT={port}: Address already in use; choose another one")
    assert not run.folder.exists()


def test_jobs_of_a_multirun_and_python_train_in_one_process(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = [option for option in run.options(*TWO) if "hydra.run.dir" not in option]
    with pytest.raises(SystemExit):
        run_train("-m", *options, "seed=1,2", f"hydra.sweep.dir={run.folder}")
    assert "the jobs of a multirun train in one process each; leave out trainer=ddp" in capsys.readouterr().err
    with pytest.raises(UsageError, match="start several with python train.py trainer=ddp trainer.devices=2"):
        charlm.train(*options, folder=run.folder)


def test_batch_normalisation_in_several_processes_is_announced() -> None:
    network, options = torch.nn.Sequential(torch.nn.BatchNorm1d(3)), TrainerOptions(devices=2, strategy="ddp")
    assert notices(options, network) and not notices(options, torch.nn.Linear(2, 2))
    assert not notices(TrainerOptions(), network)


def test_another_checkpoint_is_noticed(tmp_path: Path) -> None:
    settings, _ = compose_job(["trainer=ddp", "trainer.devices=2"], tmp_path / "run")
    path, seen = tmp_path / "last.ckpt", []
    for content in (b"a", b"a", b"b"):
        path.write_bytes(content)
        seen.append(Together(settings, "", tmp_path, path).same())
    assert seen[0] == seen[1] != seen[2]


def test_more_gpus_than_there_are_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = TrainerOptions(accelerator="cuda", devices=3)
    with pytest.raises(UsageError, match="trainer.devices=3 needs 3 GPUs, but this machine has 1; trainer.accel"):
        check_processes(options, Job(run.folder, []))
