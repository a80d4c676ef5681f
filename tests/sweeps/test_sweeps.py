"""``python train.py -m``: its table and files, what it refuses, and how it goes on after it was stopped."""

from __future__ import annotations

import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

import charlm
from charlm.errors import UsageError
from charlm.plot import main
from charlm.run.compose import compose_job, cores, with_own_threads
from charlm.run.suggest import explain
from charlm.sweeps import results, watch
from charlm.sweeps.folder import PROCESS, JobRecord, Status, SweepFolder
from tests.faults.compare import differences
from tests.helpers import ROOT, SMALL, of_extra, run_train, summary
from tests.programs import begin, environment, in_terminal, program, read_until

NAMES = ["optimizer.lr", "model", "seed", "data.bptt"]


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "checkpoint.every_steps=5"]


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_a_sorted_table_and_means_over_seeds(base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    grid = ["model=rnn,irnn", "optimizer.lr=1e-3,1e-2", "seed=1,2"]
    done = program("train.py", "-m", *grid, *base, f"hydra.sweep.dir={sweep}", env=environment(tmp_path))
    assert done.status == 0 and done.err == "", done
    rows = table(sweep)
    head = ["job", "model", "optimizer.lr", "seed", "best_val_nats", "epochs", "seconds", "folder", "status", "error"]
    assert list(rows[0]) == head and len(rows) == 8
    losses = [float(row["best_val_nats"]) for row in rows]
    assert losses == sorted(losses)
    assert {(row["model"], row["optimizer.lr"], row["seed"]) for row in rows} == {
        (model, lr, seed) for model in ("rnn", "irnn") for lr in ("0.001", "0.01") for seed in "12"
    }
    for row in rows:
        made = summary(sweep / row["folder"])
        assert made["best_val_nats"] == float(row["best_val_nats"]) and made["model"] == row["model"]
        assert made["learning_rate"] == float(row["optimizer.lr"]) and row["status"] == "finished"
        log = (sweep / row["folder"] / "train.log").read_text()
        assert "epoch 2" in log and f"model   {'irnn: ' if row['model'] == 'irnn' else ''}RNN, " in log
    content = json.loads((sweep / "results.json").read_text())
    assert [group["seeds"] for group in content["over_seeds"]] == [2] * 4
    two = [float(row["best_val_nats"]) for row in rows if (row["model"], row["optimizer.lr"]) == ("rnn", "0.01")]
    (mean,) = [g for g in content["over_seeds"] if (g["model"], g["optimizer.lr"]) == ("rnn", "0.01")]
    assert mean["mean"] == pytest.approx(sum(two) / 2)
    assert mean["standard deviation"] == pytest.approx(abs(two[0] - two[1]) / 2**0.5)
    assert (sweep / "losses.png").read_bytes().startswith(b"\x89PNG")
    lines = done.out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.split()[:2] == ["job", "model"])
    assert lines[begin].split() == ["job", "model", "optimizer.lr", "seed", "best_val_nats", "epochs", "time"]
    assert [line.split()[0] for line in lines[begin + 1 : begin + 9]] == [row["job"] for row in rows]
    main([str(path) for path in sweep.glob("*")] + ["--output", str(tmp_path / "all.png")])
    with pytest.raises(UsageError, match="is a sweep: give the folder of one of its jobs"):
        charlm.load(sweep)
    assert not any(line != line.rstrip() for line in done.out.splitlines())
    assert len(done.out.splitlines()) < 8 * 2 + 8 + 16


RECORDS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "2", "3"]), min_size=1),
        st.one_of(st.none(), st.floats(0, 9)),
    ),
    min_size=1,
    max_size=12,
)


@given(RECORDS)
def test_the_columns_are_the_settings_that_differ(jobs: list[tuple[dict[str, str], float | None]]) -> None:
    records = [
        JobRecord(n, [f"{name}={value}" for name, value in settings.items()], str(n), "finished", nats=nats)
        for n, (settings, nats) in enumerate(jobs)
    ]
    rows = results.rows(records, "best_val_nats")
    assert sorted(row["job"] for row in rows) == list(range(len(jobs)))
    known = [row["best_val_nats"] for row in rows if row["best_val_nats"] is not None]
    assert known == sorted(known) and all(row["best_val_nats"] is None for row in rows[len(known) :])
    for name in NAMES:
        values = {settings.get(name) for settings, _ in jobs}
        assert (name in rows[0] and name != "model") == (len(values) > 1 and name != "model")
    groups = results.over_seeds(rows, "best_val_nats")
    for group in groups:
        of = [r["best_val_nats"] for r in rows if r["best_val_nats"] is not None
              and all(r[n] == group[n] for n in NAMES if n in group)]  # fmt: skip
        assert group["seeds"] == len(of) and group["mean"] == pytest.approx(statistics.fmean(of))


def test_losses_of_training_come_after_those_of_validation() -> None:
    overrides = [["data.val=0"], ["data.val=0.1"], ["data.val=0.2"]]
    records = [JobRecord(n, overrides[n], "", "finished", nats=nats) for n, nats in enumerate((1.2, 1.5, 1.4))]
    records[0].loss = "best_train_nats"
    rows = results.rows(records, results.loss_name(records))
    assert [(row["job"], row["best_nats"]) for row in rows] == [(2, 1.4), (1, 1.5), (0, 1.2)]


def start(*arguments: str, tmp_path: Path, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return begin("-m", *arguments, env=environment(tmp_path), cwd=cwd)


def wait_for_checkpoint(sweep: Path, job: int) -> None:
    deadline = time.monotonic() + 60
    while not list(sweep.glob(f"{job}_*/checkpoints/best.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


COMMAND = {
    "overrides": [],
    "hydra": [],
    "flags": [],
    "jobs": [],
    "parallel": 1,
    "threads": None,
    "process": "",
    "ended": False,
}
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize(
    ("number", "launcher"),
    [
        (signal.SIGINT, []),
        pytest.param(signal.SIGTERM, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, [], marks=pytest.mark.slow),
        (signal.SIGINT, JOBLIB),
    ],
)
def test_a_stopped_sweep_goes_on_and_ends_as_if_it_had_not_been(
    number: int, launcher: list[str], base: list[str], tmp_path: Path
) -> None:
    """It goes on with one job at a time, whatever it was begun with."""
    grid = ["model=rnn,gru", "seed=1,2", *base, "trainer.max_epochs=12", "trainer.threads=1"]
    sweep, unbroken = tmp_path / "killed/sweep", tmp_path / "unbroken/sweep"
    process = start(*grid, *launcher, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    wait_for_checkpoint(sweep, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"train.py -m resume={os.path.relpath(sweep, ROOT)}" in err and "Traceback" not in err
    statuses = [record.status for record in SweepFolder(sweep).records().values()]
    assert "interrupted" in statuses and set(statuses) <= {"finished", "interrupted"}, statuses
    done = program("train.py", "-m", f"resume={sweep}", "hydra/launcher=basic", env=environment(tmp_path))
    assert done.status == 0, done
    whole = program("train.py", "-m", *grid, f"hydra.sweep.dir={unbroken}", env=environment(tmp_path))
    assert whole.status == 0
    runs = sorted(path.name for path in unbroken.glob("*_text"))
    assert len(runs) == 4
    for run in runs:
        assert differences(unbroken / run, sweep / run) == []
    assert [{**row, "seconds": ""} for row in table(sweep)] == [{**row, "seconds": ""} for row in table(unbroken)]


def test_closing_the_terminal_saves_the_job(base: list[str], tmp_path: Path) -> None:
    """The program gets a SIGHUP, and all that it prints fails."""
    sweep = tmp_path / "sweep"
    options = ["-m", "seed=1,2", *base, "trainer.max_epochs=1000", f"hydra.sweep.dir={sweep}"]
    process, terminal = in_terminal(*options, env=environment(tmp_path))
    read_until(lambda: bool(list(sweep.glob("0_*/checkpoints/best.ckpt"))), terminal)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert [record.status for record in SweepFolder(sweep).records().values()] == ["interrupted"]


def test_a_worker_that_is_killed_is_reported(base: list[str], tmp_path: Path) -> None:
    of_extra("sweep", "hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    process = start(
        "seed=1,2", *base, "trainer.max_epochs=1000", *JOBLIB, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path
    )
    wait_for_checkpoint(sweep, 0)
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    assert (
        "the process of a job was killed, perhaps because the memory was full" in err
        and f"resume={os.path.relpath(sweep, ROOT)}" in err
    )
    assert "running" not in {record.status for record in SweepFolder(sweep).records().values()}


def test_the_workers_of_a_killed_sweep_end(base: list[str], tmp_path: Path) -> None:
    of_extra("sweep", "hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    options = ["seed=1,2", *base, "trainer.max_epochs=1000", *JOBLIB, f"hydra.sweep.dir={sweep}"]
    process = start(*options, tmp_path=tmp_path)
    wait_for_checkpoint(sweep, 0)
    wait_for_checkpoint(sweep, 1)
    workers = started_by(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while started_by(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {record.status for record in SweepFolder(sweep).records().values()} == {"interrupted"}


def started_by(process: int) -> list[int]:
    """The processes with the environment of the sweep that this one runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{PROCESS}={platform.node()}:{process}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def test_other_settings_are_no_finished_job(base: list[str], tmp_path: Path) -> None:
    """What is found in the way is kept under another name."""
    conf, sweep = tmp_path / "conf", tmp_path / "sweep"
    (conf / "optimizer").mkdir(parents=True)
    shared = ["-m", "--config-dir", str(conf), "optimizer=mine", "seed=1,2", *base, f"hydra.sweep.dir={sweep}"]
    losses = []
    for rate in (1e-3, 1e-3, 1e-2):
        (conf / "optimizer/mine.yaml").write_text(f"_target_: torch.optim.Adam\n_partial_: true\nlr: {rate}\n")
        done = program("train.py", *shared, env=environment(tmp_path))
        assert done.status == 0, done
        losses.append([row["best_val_nats"] for row in table(sweep)])
    assert losses[0] == losses[1] != losses[2]
    kept = sorted(path.name for path in sweep.glob("*_text*"))
    assert kept == ["0_gru_text", "0_gru_text.old-1", "1_gru_text", "1_gru_text.old-1"]


def test_values_with_brackets_are_shown(base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    grid = ["callbacks=[default],[ema]", *base, f"hydra.sweep.dir={sweep}"]
    done = program("train.py", "-m", *grid, env=environment(tmp_path))
    assert done.status == 0 and "[default]" in done.out.split("best_val_nats")[1], done


def test_a_search_for_learning_rates_is_a_sweep_too(base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    grid = ["task=lr_find", "lr_find.steps=30", "model=rnn,gru", *base, f"hydra.sweep.dir={sweep}"]
    for _ in range(2):
        done = program("train.py", "-m", *grid, env=environment(tmp_path))
        assert done.status == 0 and "smoothed_nats" in done.out, done
    assert sorted(path.name for path in sweep.glob("*_text*")) == ["0_lr_find_rnn_text", "1_lr_find_gru_text"]


def test_the_same_command_goes_on_with_an_unfinished_sweep_only(base: list[str], tmp_path: Path) -> None:
    grid = ["seed=1,2", *base, "trainer.max_epochs=12"]
    process = start(*grid, tmp_path=tmp_path, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sweeps/*/0_*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (sweep,) = (tmp_path / "sweeps").iterdir()
    again = program("train.py", "-m", *grid, cwd=tmp_path, env=environment(tmp_path))
    assert again.status == 0 and f"resuming sweeps/{sweep.name}, which is not finished" in again.err
    assert len(table(sweep)) == 2 and [p.name for p in (tmp_path / "sweeps").iterdir()] == [sweep.name]
    new = program("train.py", "-m", *grid, cwd=tmp_path, env=environment(tmp_path))
    assert new.status == 0 and new.err == "" and len(list((tmp_path / "sweeps").iterdir())) == 2


def test_a_failed_job_is_named_and_tried_again(base: list[str], text: str, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    good = next(o for o in base if o.startswith("data.path=")).removeprefix("data.path=")
    rest = [o for o in base if not o.startswith("data.path=")]
    grid = [f"data.path={tmp_path}/missing.txt,{good}", *rest, f"hydra.sweep.dir={sweep}"]
    done = program("train.py", "-m", *grid, env=environment(tmp_path))
    assert done.status == 2 and "Traceback" not in done.err
    assert done.err.startswith(f"error: job 0 (data.path={tmp_path}/missing.txt): there is no "), done
    assert "1 job failed" in done.err and f"-m resume={os.path.relpath(sweep, ROOT)}" in done.err
    assert [(row["job"], row["status"]) for row in table(sweep)] == [("1", "finished"), ("0", "failed")]
    assert "missing.txt" in table(sweep)[1]["error"]
    assert "error: there is no " in (sweep / "0_gru_text/train.log").read_text()
    (tmp_path / "missing.txt").write_text(text[::-1])
    done = program("train.py", "-m", f"resume={sweep}", env=environment(tmp_path))
    assert done.status == 0 and {row["status"] for row in table(sweep)} == {"finished"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=1e-3,foo"], ["job 1 of 2 ", "optimizer.lr='foo' must be a number"]),
        (["resume={here}/nothing"], ["nothing is no sweep, there is no such folder"]),
        (["resume={here}/empty"], ["empty is no sweep: give a folder in sweeps/"]),
        (["resume={here}/run"], ["run is one run, not a sweep: leave out -m"]),
        (["resume={here}/sweep", "seed=4"], ["seed=4 cannot change in a resumed sweep"]),
        (["resume={here}/sweep", "hydra.sweep.dir=elsewhere"], ["stays in its own folder"]),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=1,2"], ["hydra.launcher.n_jobs=0 runs nothing"]),
        (["model=gru,nonsense"], ["there is no model=nonsense"]),
        (["model=glob(*)", "seed=a"], ["job 0 of ", "(model=char3): seed='a' must be an integer"]),
        (["seed=4,5", "hydra.sweep.dir={here}/sweep"], ["sweep holds another sweep (seed=1,2)", "-m resume="]),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    SweepFolder(tmp_path / "sweep").write_command({**COMMAND, "overrides": ["seed=1,2"]})
    given = [argument.format(here=tmp_path) for argument in arguments]
    done = program("train.py", "-m", *given, cwd=tmp_path, env=environment(tmp_path))
    assert done.is_refusal(*words)


def test_one_sweep_is_run_by_one_process(base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = start("seed=1,2", *base, "trainer.max_epochs=1000", f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    try:
        wait_for_checkpoint(sweep, 0)
        done = program("train.py", "-m", f"resume={sweep}", env=environment(tmp_path))
        assert done.is_refusal("is run by another process")
    finally:
        process.kill()
        process.communicate()


def test_several_jobs_at_once_share_the_cores(base: list[str], tmp_path: Path) -> None:
    of_extra("sweep", "hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    grid = ["seed=1,2,3,4", *base, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    done = program("train.py", "-m", *grid, env=environment(tmp_path))
    assert done.status == 0, done
    threads = max(1, cores() // 2)
    for row in table(sweep):
        assert f"CPU, {threads} thread" in summary(sweep / row["folder"])["machine"]
    began = [json.loads((sweep / f".jobs/{n}.json").read_text()) for n in range(4)]
    assert {record["status"] for record in began} == {"finished"}


@pytest.mark.parametrize(
    ("override", "alone", "beside_others"),
    [("seed=1", "auto", 3), ("trainer.threads=7", 7, 7), ("trainer.threads=auto", "auto", "auto")],
)
def test_a_job_beside_others_has_a_number_of_threads(override: str, alone: Any, beside_others: Any) -> None:
    settings, job = compose_job([override], "run")
    assert with_own_threads(settings, job, None).trainer.threads == alone
    assert with_own_threads(settings, job, 3).trainer.threads == beside_others


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweeps_that_are_really_killed_end_as_if_they_had_not_been(launcher: str) -> None:
    if launcher == "joblib":
        of_extra("sweep", "hydra_plugins.hydra_joblib_launcher")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sweeps", "--kills", "2", "--launcher", launcher],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "identical" in done.stdout, done.stdout + done.stderr


def test_a_launcher_that_is_not_installed_is_named(tmp_path: Path) -> None:
    message = "Could not find 'hydra/launcher/joblib'\n\nAvailable options in 'hydra/launcher':\n\tbasic"
    assert explain(HydraException(message)) == (
        "there is no hydra/launcher=joblib: install it with pip install -e '.[sweep]'"
    )
    done = program("train.py", "-m", "hydra/launcher=nonsense", "seed=1,2", env=environment(tmp_path))
    assert done.is_refusal("there is no hydra/launcher=nonsense: Hydra's own is hydra/launcher=basic")


def records(*statuses: Status) -> list[JobRecord]:
    return [JobRecord(n, [f"seed={n}"], str(n), status) for n, status in enumerate(statuses)]


def test_nothing_is_left_of_a_sweep_in_its_process(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    run_train("-m", "seed=1,2", *base, f"hydra.sweep.dir={tmp_path}/sweep")
    assert watch.session is None and [signal.getsignal(number) for number in numbers] == before
    capsys.readouterr()
    run_train(*base, f"hydra.run.dir={tmp_path}/run")
    assert "results" not in capsys.readouterr().out


def test_a_damaged_record_is_a_job_that_has_not_begun(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.write_command(COMMAND)
    for record in records("finished", "running", "failed"):
        sweep.write(record)
    (tmp_path / ".jobs/1.json").write_text('{"number": 1')
    (tmp_path / ".jobs/2.json").write_text('{"number": 2}')
    assert list(sweep.records()) == [0]
