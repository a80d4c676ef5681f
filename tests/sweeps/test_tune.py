"""``search.engine=ray``: Ray Tune runs the trials of a search, in clusters whose machines are really lost."""

from __future__ import annotations

import filecmp
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import charlm
from charlm.errors import UsageError
from charlm.run.compose import compose_job
from charlm.run.search_options import Range, number
from charlm.sweeps.folder import ENDED, JobRecord, SweepFolder
from charlm.sweeps.space import with_settings
from charlm.training.interrupt import Interrupt
from tests.faults.compare import TIMES, differences, rows
from tests.helpers import SMALL, of_extra, run_train
from tests.programs import begin, environment, program
from tests.run.test_resume import Killed, die_before
from tests.sweeps.conftest import Cluster
from tests.sweeps.processes import kill
from tests.sweeps.test_search import records, table, wait_until

study = of_extra("sweep", "charlm.sweeps.study")
exceptions = of_extra("ray", "ray.exceptions")
population = of_extra("ray", "charlm.sweeps.population")
tune = of_extra("ray", "charlm.sweeps.tune")

LR = "optimizer.lr: {low: 1e-5, high: 1e-1, log: true}"


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL[:-1], "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.threads=1"]


def wait_until_running(folder: Path, *, after: int) -> None:
    """Wait until a trial runs, and so many have ended."""
    wait_until(lambda: sum(record.status in ENDED for record in records(folder)) >= after)
    wait_until(lambda: any(record.status == "running" for record in records(folder)))


def log(folder: Path, record: JobRecord) -> str:
    return (folder / record.folder / "train.log").read_text()


SPACE: dict[str, Any] = {
    "optimizer.lr": Range(1e-5, 1e-1, True),
    "optimizer.weight_decay": Range(0.0, 0.4, False, 0.1),
    "optimizer.momentum": ["0.5", "0.9", "0.99"],
    "model.layers": Range(1, 4),
    "data.bptt": ["8", "16"],
    "model.dropout": Range(0.0, 0.5),
}


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_what_can_change_moves_within_the_space_and_the_rest_stays(seed: int) -> None:
    rng = random.Random(seed)
    chosen = {"model.layers": "2", "data.bptt": "16", "optimizer.momentum": rng.choice(["0.5", "0.9", "0.99"])}
    chosen |= {"optimizer.lr": number(SPACE["optimizer.lr"], 10 ** rng.uniform(-5, -1))}
    chosen |= {"optimizer.weight_decay": rng.choice(["0.0", "0.1", "0.4"]), "model.dropout": "0.25"}
    found = population.explored(chosen, SPACE, rng)
    assert list(found) == list(chosen) and (found["model.layers"], found["data.bptt"]) == ("2", "16")
    assert 1e-5 <= float(found["optimizer.lr"]) <= 1e-1 and 0 <= float(found["model.dropout"]) <= 0.5
    assert found["optimizer.momentum"] in ("0.5", "0.9", "0.99")
    assert found["optimizer.weight_decay"] in ("0.0", "0.1", "0.2", "0.3", "0.4")


def test_most_changes_are_by_a_fifth_and_some_are_new_draws() -> None:
    rng, space = random.Random(0), {"optimizer.lr": Range(1e-5, 1e-1, True)}
    ratios = [
        float(population.explored({"optimizer.lr": "0.001"}, space, rng)["optimizer.lr"]) / 0.001 for _ in range(2000)
    ]
    near = [ratio for ratio in ratios if ratio in (pytest.approx(0.8), pytest.approx(1.2))]
    assert 0.7 < len(near) / len(ratios) < 0.8
    assert min(ratios) < 0.02 and max(ratios) > 50


SCHEDULES = {
    "cosine": ["schedule=cosine"],
    "one_cycle": ["schedule=one_cycle"],
    "warmup_cosine": ["schedule=warmup_cosine"],
    "sgdr": ["schedule=sgdr"],
    "cosine_above_a_minimum": ["schedule=cosine", "schedule.scheduler.eta_min=2e-4"],
    "step": ["schedule.scheduler.at=1"],
    "plateau": ["schedule=plateau", "schedule.scheduler.patience=0", "schedule.scheduler.threshold=0.9"],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_trial_that_is_taken_over_goes_on_as_its_donor_would(schedule: str, base: list[str], tmp_path: Path) -> None:
    """With the same settings bit for bit; with another learning rate along the same curve, times a factor."""
    base = [*base, *SCHEDULES[schedule], "trainer.max_epochs=3", "parameter_groups.head.lr=0.0005"]
    same = {"optimizer.lr": "0.002", "model.output_dropout": "0.2"}
    search, whole, donor = SweepFolder(tmp_path / "search"), tmp_path / "whole", tmp_path / "donor"
    search.jobs.mkdir(parents=True)
    run_train(*with_settings(base, same), f"hydra.run.dir={whole}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_before(patch, int(rows(whole / "metrics.csv")[0]["step"]) + 1)
        run_train(*with_settings(base, same), f"hydra.run.dir={donor}")
    for name, chosen in {"same": same, "other": {"optimizer.lr": "0.004", "model.output_dropout": "0.0"}}.items():
        record = JobRecord(0, [], name)
        population.take_over(search, record, donor / "checkpoints", base, chosen)
        assert record.overrides == with_settings(base, chosen) and search.read(0) == record
        run_train(f"resume={search.path / name}")
    assert differences(whole, search.path / "same") == []
    expected, found = rows(whole / "metrics.csv"), rows(search.path / "other/metrics.csv")
    assert found[0] == {**expected[0], **{name: found[0][name] for name in TIMES & found[0].keys()}}
    rates = [[float(row["learning_rate"]) for row in run] for run in (expected, found)]
    low = 2e-4 if "eta_min" in str(SCHEDULES[schedule]) else 0.0
    assert rates[1] == pytest.approx(
        [rates[0][0], *(low + (rate - low) * (0.004 - low) / (0.002 - low) for rate in rates[0][1:])]
    )
    assert all(found[epoch]["train_nats"] != expected[epoch]["train_nats"] for epoch in (1, 2))
    states = [torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (whole, search.path / "other")]
    heads = [next(g for g in state["optimizer_states"][0]["param_groups"] if g["name"] == "head") for state in states]
    assert heads[0] == heads[1]  # has a learning rate of its own
    assert charlm.load(search.path / "other").network.dropout.p == 0.0


def test_a_take_over_that_is_killed_has_happened_or_not(base: list[str], tmp_path: Path) -> None:
    """In both cases, the checkpoints belong together, and the record says what they do."""
    same = {"optimizer.lr": "0.002", "model.output_dropout": "0.2"}
    search, donor, own = SweepFolder(tmp_path / "search"), tmp_path / "donor", tmp_path / "own"
    search.jobs.mkdir(parents=True)
    for folder, seed in ((donor, 1), (own, 2)):
        run_train(*with_settings(base, same), "trainer.max_epochs=1", f"seed={seed}", f"hydra.run.dir={folder}")
    ends = []
    for calls in range(100):
        record = JobRecord(0, with_settings(base, same), str(calls))
        shutil.copytree(own, search.path / str(calls))
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, calls)
            try:
                population.take_over(search, record, donor / "checkpoints", base, {**same, "optimizer.lr": "0.004"})
                killed = False
            except Killed:
                killed = True
        population.finish_take_over(search, record)
        run = search.path / str(calls) / "checkpoints"
        source = next(
            path for path in (donor, own) if filecmp.cmp(path / "checkpoints/best.ckpt", run / "best.ckpt", False)
        )
        last = torch.load(run / "last.ckpt", weights_only=True)["charlm"]
        assert last["config"]["seed"] == (1 if source == donor else 2)
        assert last["config"]["optimizer"]["lr"] == (0.004 if source == donor else 0.002)
        assert record.overrides == last["run"]["overrides"] and search.read(0) == record
        assert [path.name for path in run.parent.glob("checkpoints*")] == ["checkpoints"]
        ends.append(source == donor)
        if not killed:
            break
    assert ends == sorted(ends) and {*ends} == {False, True} and len(ends) > 4


def die_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Die in place of the next change of a file, after so many."""
    left = [calls]

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return change(*arguments, **options)

        return counted

    patch.setattr(shutil, "rmtree", counting(shutil.rmtree))
    for name in ("rename", "mkdir"):
        patch.setattr(Path, name, counting(getattr(Path, name)))
    patch.setattr(os, "replace", counting(os.replace))


def test_a_trial_that_is_lost_is_tried_again_and_one_that_fails_is_not(base: list[str], tmp_path: Path) -> None:
    options = ["task=search", f"search.space={{{LR}}}", "search.trials=2", "search.engine=ray"]
    settings, job = compose_job([*base, *options], tmp_path / "search")
    folder = SweepFolder(job.folder)
    folder.jobs.mkdir(parents=True)
    queue = tune.Queue(folder, study.Trials(job.folder, settings.search), settings, job, base, Interrupt())
    for _ in range(tune.RETRIES):
        assert queue.begin() and [taken["number"] for taken in queue.waiting] == [0]
        queue.ended(0)
    assert queue.begin() and queue.waiting[0]["number"] == 0 and records(job.folder)[0].status == "waiting"
    queue.ended(0, exceptions.RayActorError())  # Ray has tried it several times
    assert (records(job.folder)[0].status, records(job.folder)[0].error) == (
        "failed",
        "its process was lost, perhaps because the memory was full",
    )
    assert queue.begin() and queue.waiting[0]["number"] == 1
    queue.ended(1, RuntimeError("Traceback\n  …\nValueError: what went wrong"))
    assert records(job.folder)[1].error == "ValueError: what went wrong"
    assert not queue.begin()
    queue.close()


@pytest.mark.slow
def test_a_search_in_a_cluster_is_the_one_in_this_process(
    base: list[str], tmp_path: Path, cluster: Callable[[int], Cluster]
) -> None:
    """One trial at a time with random settings: bit for bit, also if the search is stopped and then killed."""
    options = [*base, "task=search", "search.space={optimizer.lr: [1e-7, 1e-2, 1e-3, 1e6]}", "search.trials=8"]
    options += ["search.startup=2", "search.sampler=random", "search.seed=3", "trainer.max_epochs=30"]
    alone = charlm.search(*options, folder=tmp_path / "alone/search")
    assert {"finished", "pruned"} == {row["status"] for row in alone.table}
    address, _ = cluster(1)
    env = {**environment(tmp_path), "RAY_ADDRESS": address}
    folder = tmp_path / "cluster/search"
    command = [*options, "search.engine=ray", f"hydra.run.dir={folder}"]
    process = begin(*command, env=env)
    wait_until_running(folder, after=1)
    refused = program("train.py", *command, env=env)
    assert refused.is_refusal("is run by another process: more machines join its Ray cluster")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (
        process.returncode == 143 and "resume with\n  python train.py resume=" in err and "Traceback" not in out + err
    )
    assert "running" not in [record.status for record in records(folder)]
    process = begin(*command, env=env)
    wait_until_running(folder, after=sum(record.status in ENDED for record in records(folder)) + 1)
    process.kill()
    process.communicate()
    done = program("train.py", f"resume={folder}", "search.engine=optuna", env=env)  # as well without the cluster
    assert done.status == 0 and done.err == "", done
    rows_of = [[{**row, "seconds": "", "error": ""} for row in table(path)] for path in (alone.folder, folder)]
    assert rows_of[0] == rows_of[1]
    for row in alone.table:
        assert differences(alone.folder / row["folder"], folder / row["folder"]) == []
    assert "search.png" in done.out


@pytest.mark.slow
def test_a_population_learns_from_its_best_and_survives_the_loss_of_a_machine(
    base: list[str], tmp_path: Path, cluster: Callable[[int], Cluster]
) -> None:
    address, (_, worker) = cluster(2)
    folder = tmp_path / "search"
    options = ["task=search", "search.engine=ray", "search.pruner=population", "search.trials=4", "search.warmup=1"]
    options += [f"search.space={{{LR}, model.output_dropout: [0.0, 0.1, 0.2]}}", "trainer.max_epochs=8"]
    process = begin(*base, *options, f"hydra.run.dir={folder}", env={**environment(tmp_path), "RAY_ADDRESS": address})
    wait_until(lambda: sum(record.epoch > 1 for record in records(folder)) > 2)
    kill(worker)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    ended = {record.number: record for record in records(folder)}
    assert [record.status for record in ended.values()] == ["finished"] * 4
    taken = {
        n: re.findall(r"goes on from trial (\d) with optimizer.lr=(\S+)", log(folder, record))
        for n, record in ended.items()
    }
    learners = [n for n, found in taken.items() if found]
    assert learners
    for learner in learners:
        donor, lr = taken[learner][-1]
        assert ended[learner].overrides[-2] == f"optimizer.lr={lr}" and 1e-5 <= float(lr) <= 1e-1
        mine, theirs = (rows(folder / ended[n].folder / "metrics.csv") for n in (learner, int(donor)))
        assert len(mine) == 8 and mine[-1]["learning_rate"] != theirs[-1]["learning_rate"]
        settings_of_last = torch.load(folder / ended[learner].folder / "checkpoints/last.ckpt", weights_only=True)
        assert settings_of_last["charlm"]["config"]["optimizer"]["lr"] == float(lr)
    assert re.search(r"python sample.py --checkpoint \S+/search/\d_gru_text\n", out)
    assert not (folder / ".ray").exists()
    assert "importance  unknown, because settings may change" in out and "(raylet)" not in out
    before = log(folder, ended[learners[0]]).partition("goes on from")[0]
    assert "epoch 2 " in before  # after search.warmup epochs, and one that counts
    env = {**environment(tmp_path), "RAY_ADDRESS": address}
    again = program("train.py", f"resume={folder}", env=env)
    assert again.status == 0 and "finished" not in again.err and list(records(folder)) == list(ended.values()), again


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "search.pruner='population' needs search.engine=ray"),
        (
            ["search.engine=ray", "search.space={model.layers: [1, 2]}"],
            "search.pruner='population' needs one of optimizer.lr, optimizer.weight_decay, ",
        ),
        (["search.engine=ray", "search.trials=1"], "search.trials=1 must be at least 2"),
        (
            ["search.engine=ray", "trainer.max_epochs=3"],
            "changes nothing in trainer.max_epochs=3 with search.warmup=2: train for 4 epochs at least",
        ),
        (["search.engine=spark"], "search.engine='spark' must be 'optuna' or 'ray'"),
    ],
)
def test_what_a_cluster_cannot_search_is_refused(options: list[str], words: str, tmp_path: Path) -> None:
    space = [] if "space" in str(options) else [f"search.space={{{LR}}}"]
    with pytest.raises(UsageError, match=re.escape(words)):
        charlm.search(*space, "search.pruner=population", *options, folder=tmp_path / "search")


@pytest.mark.parametrize(
    ("address", "option", "words"),
    [
        (
            "127.0.0.1:9",
            "seed=1",
            "RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers there (Connection refused): start one",
        ),
        ("ray://127.0.0.1:10001", "seed=1", "give RAY_ADDRESS=HOST:6379, not ray://"),
        (None, "trainer.threads=1000", "CPUs, and a trial needs 1000: lower trainer.threads"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused_at_once(
    address: str | None, option: str, words: str, tmp_path: Path
) -> None:
    options = ["task=search", f"search.space={{{LR}}}", "search.engine=ray", option]
    env = {**environment(tmp_path), "HOME": str(tmp_path)}
    env = {**{k: v for k, v in env.items() if k != "RAY_ADDRESS"}, **({"RAY_ADDRESS": address} if address else {})}
    done = program("train.py", *options, cwd=tmp_path, env=env)
    assert done.is_refusal(words) and not list(tmp_path.glob("searches/*/*"))


def test_without_ray_tune_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "charlm.sweeps.tune", raising=False)
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(UsageError, match=re.escape("install it with pip install -e '.[sweep,ray]'")):
        charlm.search(f"search.space={{{LR}}}", "search.engine=ray", folder=tmp_path / "search")
