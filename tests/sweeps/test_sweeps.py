"""``python train.py -m``: its table and files, what it refuses, and how it goes on after it was stopped."""

from __future__ import annotations

import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

from charlm.run.compose import cores
from charlm.run.suggest import explain
from charlm.sweeps import results
from charlm.sweeps.folder import JobRecord, SweepFolder
from tests.faults.compare import differences
from tests.helpers import ROOT, SMALL, summary
from tests.programs import environment, program

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
    printed = [line.split()[0] for line in done.out.splitlines() if line.endswith(" finished")]
    assert printed == [row["job"] for row in rows] and "Traceback" not in done.out
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


def start(*arguments: str, tmp_path: Path, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A multirun in a process group of its own, so that all of it can be killed."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments],
        cwd=cwd,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def wait_for_checkpoint(sweep: Path, job: int) -> None:
    deadline = time.monotonic() + 60
    while not list(sweep.glob(f"{job}_*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_goes_on_and_ends_as_if_it_had_not_been(number: int, base: list[str], tmp_path: Path) -> None:
    grid = ["model=rnn,gru", "seed=1,2", *base, "trainer.max_epochs=12"]
    sweep, unbroken = tmp_path / "killed/sweep", tmp_path / "unbroken/sweep"
    process = start(*grid, f"hydra.sweep.dir={sweep}", tmp_path=tmp_path)
    wait_for_checkpoint(sweep, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"python train.py -m resume={sweep}" in err and "Traceback" not in err
    statuses = [record.status for record in SweepFolder(sweep).records().values()]
    assert statuses[0] == "finished" and "interrupted" in statuses and len(statuses) < 4, statuses
    done = program("train.py", "-m", f"resume={sweep}", env=environment(tmp_path))
    assert done.status == 0, done
    assert done.out.count("job 0") == 1  # only that it is finished
    whole = program("train.py", "-m", *grid, f"hydra.sweep.dir={unbroken}", env=environment(tmp_path))
    assert whole.status == 0
    for run in sorted(unbroken.glob("*_text")):
        assert differences(run, sweep / run.name) == []
    assert [{**row, "seconds": ""} for row in table(sweep)] == [{**row, "seconds": ""} for row in table(unbroken)]


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
    assert again.status == 0 and f"going on with sweeps/{sweep.name}, which is not finished" in again.err
    assert len(table(sweep)) == 2 and [p.name for p in (tmp_path / "sweeps").iterdir()] == [sweep.name]
    time.sleep(1)  # the folders' names have a resolution of one second
    new = program("train.py", "-m", *grid, cwd=tmp_path, env=environment(tmp_path))
    assert new.status == 0 and new.err == "" and len(list((tmp_path / "sweeps").iterdir())) == 2


def test_a_failed_job_is_named_and_tried_again(base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    good = next(o for o in base if o.startswith("data.path=")).removeprefix("data.path=")
    rest = [o for o in base if not o.startswith("data.path=")]
    grid = [f"data.path={tmp_path}/missing.txt,{good}", *rest, f"hydra.sweep.dir={sweep}"]
    for attempt in range(2):
        done = program("train.py", "-m", *(grid if attempt == 0 else [f"resume={sweep}"]), env=environment(tmp_path))
        assert done.status == 2 and "Traceback" not in done.err
        assert done.err.startswith(f"error: job 0 (data.path={tmp_path}/missing.txt): there is no "), done
        assert "1 job failed" in done.err and f"-m resume={sweep}" in done.err
    assert [(row["job"], row["status"]) for row in table(sweep)] == [("1", "finished"), ("0", "failed")]
    assert "missing.txt" in table(sweep)[1]["error"]
    assert "error: there is no " in (sweep / "0_gru_text/train.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=1e-3,foo"], ["job 1 of 2 ", "optimizer.lr='foo' must be a number"]),
        (["resume={here}/nothing"], ["nothing is no sweep, there is no such folder"]),
        (["resume={here}/empty"], ["empty is no sweep: give the folder of one"]),
        (["resume={here}/run"], ["run is one run, not a sweep: leave out -m"]),
        (["resume={here}/sweep", "seed=4"], ["seed=4 cannot change in a resumed sweep"]),
        (["seed=4,5", "hydra.sweep.dir={here}/sweep"], ["sweep holds another sweep (seed=1,2)", "-m resume="]),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    SweepFolder(tmp_path / "sweep").create({"overrides": ["seed=1,2"], "hydra": [], "jobs": [], "ended": False})
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
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    grid = ["seed=1,2,3,4", *base, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    done = program("train.py", "-m", *grid, env=environment(tmp_path))
    assert done.status == 0, done
    threads = max(1, cores() // 2)
    for row in table(sweep):
        assert f"CPU, {threads} thread" in summary(sweep / row["folder"])["machine"]
    began = [json.loads((sweep / f".jobs/{n}.json").read_text()) for n in range(4)]
    assert {record["status"] for record in began} == {"finished"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweeps_that_are_really_killed_end_as_if_they_had_not_been(launcher: str) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sweeps", "--kills", "3", "--launcher", launcher],
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
    assert done.is_refusal("there is no hydra/launcher=nonsense: choose one of")


def records(*statuses: str) -> list[Any]:
    return [JobRecord(n, [f"seed={n}"], str(n), status) for n, status in enumerate(statuses)]  # type: ignore[arg-type]


def test_a_damaged_record_is_a_job_that_has_not_begun(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.create({"overrides": [], "hydra": [], "jobs": [], "ended": False})
    for record in records("finished", "running", "failed"):
        sweep.write(record)
    (tmp_path / ".jobs/1.json").write_text('{"number": 1')
    (tmp_path / ".jobs/2.json").write_text('{"number": 2}')
    assert list(sweep.records()) == [0]
