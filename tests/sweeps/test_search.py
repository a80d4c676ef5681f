"""``task=search``: what it finds, how it goes on after it was stopped, and how several processes share it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import charlm
from charlm.errors import UsageError
from charlm.run.compose import compose_job
from charlm.run.search_options import Range, SearchOptions, number
from charlm.sweeps.command import expanded_search
from charlm.sweeps.folder import SWEEP, JobRecord, SweepFolder
from charlm.sweeps.search_results import importances
from tests.faults.compare import differences
from tests.helpers import ROOT, SMALL, of_extra, run_train, summary
from tests.programs import begin, environment, program

optuna = of_extra("sweep", "optuna")
study_of = of_extra("sweep", "charlm.sweeps.study")

LR = "optimizer.lr: {low: 1e-5, high: 1e-1, log: true}"
SPACE = {
    "optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "model.layers": {"low": 1, "high": 4},
    "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
    "model": ["gru", "lstm"],
}


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.threads=1"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def records(folder: Path) -> list[JobRecord]:
    return list(SweepFolder(folder).records().values())


def same_training(alone: Path, trial: Path) -> bool:
    """Whether a run outside the search, whose record differs only in that, trained like a trial bit for bit."""
    found = differences(alone, trial)
    assert [d for d in found if "/charlm/run/" not in d] == []
    return True


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_range_ends_at_its_last_step() -> None:
    """Optuna would warn, and a value would be checked that is never drawn."""
    whole = SearchOptions(space={"model.layers": {"low": 1, "high": 8, "step": 2}}).parameters()
    assert whole["model.layers"] == Range(1, 7, False, 2)
    part = SearchOptions(space={"model.dropout": {"low": 0.0, "high": 0.5, "step": 0.1}}).parameters()
    assert part["model.dropout"] == Range(0.0, pytest.approx(0.5), False, 0.1)


def test_a_search_finds_the_learning_rate_and_says_what_matters(base: list[str], tmp_path: Path) -> None:
    # How often checkpoints are written changes no loss.
    space = f"search.space={{{LR}, checkpoint.every_steps: [500, 1000]}}"
    options = ["task=search", space, "search.trials=12", "search.pruner=null", "trainer.max_epochs=1"]
    folder = tmp_path / "search"
    done = program("train.py", *base, *options, f"hydra.run.dir={folder}", env=environment(tmp_path))
    assert done.status == 0 and done.err == "", done
    rows = table(folder)
    assert list(rows[0]) == ["trial", "model", "optimizer.lr", "checkpoint.every_steps", "best_val_nats", "epochs"] + [
        "seconds", "folder", "status", "error"
    ]  # fmt: skip
    losses = [float(row["best_val_nats"]) for row in rows]
    assert sorted(int(row["trial"]) for row in rows) == list(range(12)) and losses == sorted(losses)
    for row in rows:
        made = summary(folder / row["folder"])
        assert made["best_val_nats"] == float(row["best_val_nats"]) and row["status"] == "finished"
        assert made["learning_rate"] == float(row["optimizer.lr"]) and 1e-5 <= made["learning_rate"] <= 1e-1
    assert float(rows[0]["optimizer.lr"]) > 1e-3  # with the lowest rates, nothing is learnt in one epoch
    found = json.loads((folder / "results.json").read_text())
    assert list(found["importances"]) == ["optimizer.lr", "checkpoint.every_steps"]
    assert found["importances"]["optimizer.lr"] > 0.6 and sum(found["importances"].values()) == pytest.approx(1)
    assert (
        f"trial {rows[0]['trial']}: {losses[0]:.4f} nats/char with optimizer.lr={rows[0]['optimizer.lr']}" in done.out
    )
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG") and (folder / "losses.png").exists()
    command = done.out.rstrip().splitlines()[-1]
    assert found["command"] == command.strip()
    again = run_train(*shlex.split(command)[2:], f"hydra.run.dir={tmp_path}/again")
    assert again == losses[0]
    assert same_training(tmp_path / "again", folder / rows[0]["folder"])


def test_hopeless_trials_end_early_and_say_so(base: list[str], tmp_path: Path) -> None:
    options = ["search.space={optimizer.lr: [1e-7, 1e-2, 1e6]}", "search.trials=8", "search.startup=2"]
    options += ["search.sampler=random", "trainer.max_epochs=4", "search.seed=3"]
    result = charlm.search(*base, *options, folder=tmp_path / "search")
    assert result.best == {"optimizer.lr": "0.01"} and result.run == result.folder / result.table[0]["folder"]
    assert charlm.load(result).vocab and "search.png" not in result._repr_html_()
    with pytest.raises(UsageError, match="is a search: give the folder of one of its trials"):
        charlm.load(result.folder)
    with pytest.raises(UsageError, match="is a search: in Python, charlm.search resumes it"):
        charlm.train(f"resume={result.folder}")
    by_status = {row["status"]: row for row in result.table}
    assert set(by_status) == {"finished", "pruned", "diverged"}, result.table
    pruned = result.folder / by_status["pruned"]["folder"]
    assert by_status["pruned"]["optimizer.lr"] == "1e-07" and by_status["pruned"]["epochs"] == 3
    assert summary(pruned)["pruned"].startswith("pruned in epoch 3: ") and (pruned / "checkpoints/last.ckpt").exists()
    assert "pruned in epoch 3: other trials of the search had lower losses" in (pruned / "train.log").read_text()
    assert "diverged" in by_status["diverged"]["error"] and by_status["diverged"]["best_val_nats"] is None
    states = [trial.state.name for trial in study_of.Trials(result.folder, options_of(trials=8, startup=2)).all()]
    expected = {"finished": "COMPLETE", "pruned": "PRUNED", "diverged": "PRUNED"}
    assert states == [expected[record.status] for record in records(result.folder)]


def options_of(**values: Any) -> SearchOptions:
    return SearchOptions(**{"space": SPACE, "trials": 100, "startup": 3, "warmup": 0, **values})


def loss(chosen: dict[str, str]) -> float:
    """A made-up loss."""
    return abs(float(chosen["optimizer.lr"]) - 0.01) + int(chosen["model.layers"]) / 10 + (chosen["model"] == "gru")


def simulate(folder: Path, options: SearchOptions, kills: dict[int, int]) -> list[dict[str, str]]:
    """What trials try whose process is killed after so many suggestions, and goes on with the journal."""
    (folder / ".jobs").mkdir(parents=True, exist_ok=True)
    trials, found, suggest = study_of.Trials(folder, options), [], optuna.trial.Trial._suggest
    for count in range(12):
        left = kills.get(count)

        def dying(self: Any, name: str, distribution: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left = None if left is None else left - 1
            return suggest(self, name, distribution)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optuna.trial.Trial, "_suggest", dying)
            for _ in range(2):
                try:
                    with trials.claimed() as trial:
                        assert trial is not None and trial.number == count
                        found.append(trials.settings(trial))
                        record = JobRecord(count, [], "", "finished", nats=loss(found[-1]))
                        trials.tell(trial, record)
                    break
                except KeyboardInterrupt:
                    left, trials = None, study_of.Trials(folder, options)
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@settings(max_examples=8, deadline=None)
@given(kills=st.dictionaries(st.integers(0, 11), st.integers(0, 3), min_size=1, max_size=4))
def test_what_is_tried_depends_on_the_earlier_trials_only(
    tmp_path_factory: pytest.TempPathFactory, sampler: str, kills: dict[int, int]
) -> None:
    options = options_of(sampler=sampler)
    unbroken = simulate(tmp_path_factory.mktemp("a"), options, {})
    assert simulate(tmp_path_factory.mktemp("b"), options, kills) == unbroken
    assert simulate(tmp_path_factory.mktemp("c"), options_of(sampler=sampler, seed=1), {}) != unbroken
    assert len({tuple(chosen.items()) for chosen in unbroken}) > 8
    for chosen in unbroken:
        assert 1e-5 <= float(chosen["optimizer.lr"]) <= 1e-1 and chosen["model"] in ("gru", "lstm")
        assert chosen["model.layers"] in list("1234") and chosen["model.dropout"] in (
            "0.0",
            *(f"0.{n}" for n in "12345"),
        )


@settings(max_examples=20, deadline=None)
@given(
    pruner=st.sampled_from(["median", "halving"]),
    losses=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=5, max_size=9),
)
def test_a_trial_that_was_killed_hears_the_same_about_validations_that_it_repeats(
    tmp_path_factory: pytest.TempPathFactory, pruner: str, losses: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("search")
    (folder / ".jobs").mkdir()
    trials = study_of.Trials(folder, options_of(pruner=pruner, startup=2))
    for count, values in enumerate(losses[:-1]):
        with trials.claimed() as trial:
            for step, nats in enumerate(values, 1):
                trials.hopeless(trial, step, nats)
            trials.tell(trial, JobRecord(count, [], "", "finished", nats=min(values)))

    def heard() -> list[bool]:
        with study_of.Trials(folder, options_of(pruner=pruner, startup=2)).claimed() as trial:
            return [trials.hopeless(trial, step, nats) for step, nats in enumerate(losses[-1], 1)]

    assert heard() == heard()


def test_a_line_that_a_crash_cut_off_is_removed(tmp_path: Path) -> None:
    unbroken = simulate(tmp_path / "a", options_of(), {})
    journal = tmp_path / "a/journal.log"
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert len(study_of.Trials(tmp_path / "a", options_of()).all()) == len(unbroken)
    assert journal.read_bytes().startswith(whole) and journal.read_bytes().endswith(b"\n")
    journal.write_bytes(b"nonsense\n")
    with pytest.raises(UsageError, match="journal.log is no journal of a search"):
        study_of.Trials(tmp_path / "a", options_of())


@given(
    others=st.lists(st.lists(st.floats(1, 9), min_size=1, max_size=4), max_size=12),
    own=st.lists(st.floats(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_successive_halving_keeps_the_best_third(others: list[list[float]], own: list[float]) -> None:
    study = optuna.create_study(pruner=study_of.Halving(startup=0))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for losses in others:
        trial = study.ask()
        for step, nats in enumerate(losses, 1):
            trial.report(nats, step)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    trial = study.ask()
    for step, nats in enumerate(own, 1):
        trial.report(nats, step)
    there = [losses[len(own) - 1] for losses in [*others, own] if len(losses) >= len(own)]
    best = sorted(there)[: max(1, len(there) // 3)]
    assert trial.should_prune() is (len(own) in (1, 3) and own[-1] > best[-1])


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_finishes_what_the_other_leaves(base: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "search"
    command = [*base, "task=search", f"search.space={{{LR}}}", "search.trials=4", "search.pruner=null"]
    command += ["trainer.max_epochs=25", "checkpoint.every_steps=10", f"hydra.run.dir={folder}"]
    one = begin(*command, env=environment(tmp_path))
    wait_until(lambda: list(folder.glob("0_*/metrics.csv")))
    two = begin(f"resume={folder}", env=environment(tmp_path))
    wait_until(lambda: len([r for r in records(folder) if r.status == "running" and r.epoch > 0]) == 2)
    left = [record.number for record in records(folder) if record.status == "running"]
    one.kill()
    one.communicate()
    out, err = two.communicate(timeout=90)
    assert two.returncode == 0 and err == "", err
    ended = records(folder)
    assert [record.status for record in ended] == ["finished"] * 4 and len({r.overrides[-1] for r in ended}) == 4
    (taken,) = [r for r in ended if r.number in left and "resumed" in (folder / r.folder / "train.log").read_text()]
    assert len(table(folder)) == 4 and "Traceback" not in out
    alone = tmp_path / "alone"
    run_train(*taken.overrides, f"hydra.run.dir={alone}")
    assert same_training(alone, folder / taken.folder)


def test_a_stopped_search_says_how_to_go_on(base: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "search"
    command = [*base, "task=search", f"search.space={{{LR}}}", "search.trials=3", "trainer.max_epochs=12"]
    process = begin(*command, f"hydra.run.dir={folder}", env=environment(tmp_path))
    wait_until(lambda: list(folder.glob("1_*/metrics.csv")))
    assert SweepFolder(folder).locked()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "resume with\n  python train.py resume=" in err and "Traceback" not in err + out
    )
    assert [record.status for record in records(folder)] == ["finished", "interrupted"]
    with pytest.raises(UsageError, match="seed=3 cannot change in a resumed search"):
        charlm.search(f"resume={folder}", "seed=3")
    with pytest.raises(UsageError, match="holds another search"):
        charlm.search(*command, "seed=3", folder=folder)
    done = program("train.py", f"resume={folder}", "search.trials=4", env=environment(tmp_path))
    assert done.status == 0 and [record.status for record in records(folder)] == ["finished"] * 4, done


def test_the_same_command_goes_on_with_an_unfinished_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["experiment=search_lstm", "search.trials=3"]
    kept = SweepFolder(Path("searches/2026-01-31_12-00-00_lstm_text"))
    kept.write_command({"overrides": command, "options": {}, "ended": False})
    assert expanded_search(command) == [*command, f"hydra.run.dir={kept.path}"]
    with FileLock(kept.jobs / "lock"):  # a process works on it: the same command starts another search
        assert expanded_search(command) == command
    assert expanded_search([*command, "seed=1"]) == [*command, "seed=1"]
    assert expanded_search([*command, "hydra.run.dir=x/y"]) == [*command, "hydra.run.dir=x/y"]
    longer = expanded_search([f"resume={kept.path}", "search.trials=5"])
    assert longer == ["experiment=search_lstm", "search.trials=5", f"hydra.run.dir={kept.path}"]
    assert expanded_search(["resume=runs/x"]) == ["resume=runs/x"]
    odd = SweepFolder(Path("my searches/it's"))
    odd.write_command({"overrides": command, "options": {}, "ended": False})
    assert expanded_search(["resume=my searches/it's"])[-1] == r"hydra.run.dir='my searches/it\'s'"
    kept.write_command({"overrides": command, "options": {}, "ended": True})
    assert expanded_search(command) == command


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            "{model.hiden_size: [8, 16]}",
            "search.space: model.hiden_size is not an option: did you mean model.hidden_size?",
        ),
        ("{optimizer.lr: [1e-3, fast]}", "search.space: optimizer.lr='fast' must be a number"),
        ("{model: [gru, lsmt]}", "search.space: there is no model=lsmt: did you mean lstm?"),
        ("{model.dropout: {low: 0.0, high: 1.5}}", "search.space: model.dropout=1.5 must be less than 1"),
        ("{model.dropout: [0.1, 0.2]}", "search.space: model.dropout=0.1 acts between layers: use two or more layers"),
        ("{model.layers: {low: 2, high: 2}}", "search.space.model.layers.high=2 must be more than low=2"),
        ("{optimizer.lr: {low: 0.0, high: 1.0, log: true}}", "search.space.optimizer.lr.low=0.0 must be more than 0"),
        ("{optimizer.lr: {low: a, high: 1.0}}", "search.space.optimizer.lr.low='a' must be a number"),
        ("{optimizer.lr: {low: 0.1}}", "search.space.optimizer.lr.high is missing"),
        ("{optimizer.lr: {low: 0.1, hihg: 1.0}}", "search.space.optimizer.lr.hihg is not part of a range"),
        ("{optimizer.lr: {low: 0.1, high: 1.0, step: 2.0}}", "step=2.0 must be more than 0, and at most high - low"),
        ("{optimizer.lr: {low: 0.1, high: 1.0, step: 0.1, log: true}}", "step=0.1 cannot be combined with log: true"),
        ("{optimizer.lr: [1e-3]}", "search.space.optimizer.lr=[0.001] must have at least two values"),
        ("{optimizer.lr: [1e-3, 0.001]}", "search.space.optimizer.lr=[0.001, 0.001] has a value twice"),
        ("{optimizer.lr: 1e-3}", "search.space.optimizer.lr=0.001 must be a list such as [1,2], or a range"),
        ("{seed: [1, -2]}", "search.space: seed=-2 must be at least 0"),
        ("null", "task=search needs a space to search, such as 'search.space={"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_the_first_trial(space: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        charlm.search(f"search.space={space}", folder=tmp_path / "search")
    assert str(refused.value).startswith(words.split("step=")[0]) and words in str(refused.value)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search.space={optimizer.lr: [1e-3, fast]}"], "search.space: optimizer.lr='fast' must be a number"),
        (
            ["-m", "search.space={seed: [1, 2]}", "optimizer.lr=1e-3,1e-2"],
            "task=search makes its own runs: leave out -m",
        ),
        (["--config-dir=lab", "-cn=lab", "search.space={seed: [1, 2]}"], "leave out -cn, --config-dir and the like"),
        (
            ["experiment=search_lstm", "model.layers=3"],
            "model.layers=3 fixes what search.space searches: leave it out, or model.layers with "
            "'search.space={model.layers: null}'",
        ),
        (["trainer=ddp", "trainer.devices=2", "search.space={seed: [1, 2]}"], "leave out trainer=ddp"),
        (["-m", "resume=old/search"], "resume=old/search is a search, not a sweep: leave out -m"),
        (
            ["hydra.run.dir=old/search", "search.space={seed: [1, 2]}"],
            "old/search holds another search (seed=1): choose",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/lab.yaml").write_text("defaults: [train, _self_]")
    SweepFolder(tmp_path / "old/search").write_command({"overrides": ["seed=1"], "options": {}, "ended": True})
    SweepFolder(tmp_path / "old/sweep").write_command(dict.fromkeys(SWEEP, []))
    more = [] if {"-m", "seed=1,2"} <= set(arguments) or "resume=old/search" in arguments else ["task=search"]
    done = program("train.py", *arguments, *more, cwd=tmp_path, env=environment(tmp_path))
    assert done.is_refusal(words) and not list(tmp_path.glob("s*/*"))


def test_a_value_may_need_others_and_sections_may_be_nested() -> None:
    # Value clipping needs a value, and the first one is null.
    more = "search.space={data.bptt: [8,16], model.layers: null, optimizer.lr: {low: 1e-4}}"
    composed, _ = compose_job(["experiment=search_lstm", more], Path())
    space = composed.search.parameters()
    assert space["data.bptt"] == ["8", "16"] and "model.layers" not in space and "model.hidden_size" in space
    assert space["optimizer.lr"] == Range(1e-4, 3e-2, True)
    nested = {"trainer": {"gradient_clip_algorithm": ["norm", "value"], "gradient_clip_val": [None, 1.0]}}
    found = SearchOptions(space={**nested, "model.layers": None}).parameters()
    assert found == {"trainer.gradient_clip_algorithm": ["norm", "value"], "trainer.gradient_clip_val": ["null", "1.0"]}
    from charlm.sweeps.space import check_space

    check_space([], found)
    with pytest.raises(UsageError, match="gradient_clip_algorithm=value clips nothing"):
        check_space([], {**found, "trainer.gradient_clip_val": ["null"]})


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "charlm.sweeps.study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UsageError, match=re.escape("task=search needs optuna: install it with pip install -e '.[sweep]'")
    ):
        charlm.search(f"search.space={{{LR}}}", folder=tmp_path / "search")


def test_no_trial_begins_when_the_time_is_over(base: list[str], tmp_path: Path) -> None:
    options = [f"search.space={{{LR}}}", "search.minutes=0.001", "search.startup=0"]
    result = charlm.search(*base, *options, folder=tmp_path / "search")
    assert len(result.table) == 1 and result.importances == {}
    more = charlm.search(f"resume={result.folder}", "search.minutes=null", "search.trials=2")
    assert [row["trial"] for row in more.table] in ([0, 1], [1, 0])


def test_a_search_in_which_nothing_works_ends_after_three_trials(base: list[str], tmp_path: Path) -> None:
    options = [f"search.space={{{LR}}}", "search.trials=9", "data.path=missing.txt"]
    with pytest.raises(UsageError, match="the first 3 trials failed, the last one with: .*data.path=missing.txt"):
        charlm.search(*base, *options, folder=tmp_path / "search")
    assert [row["status"] for row in table(tmp_path / "search")] == ["failed"] * 3


@given(
    low=st.floats(1e-6, 1e3), width=st.floats(1e-3, 1e3), share=st.floats(0, 1), step=st.one_of(st.none(), st.just(0.1))
)
def test_numbers_have_few_digits_and_stay_in_their_range(low: float, width: float, share: float, step: Any) -> None:
    values = Range(low, low + width, False, step)
    text = number(values, low + share * width)
    assert values.low <= float(text) <= values.high
    assert text in (repr(values.low), repr(values.high)) or step or float(text) == float(f"{float(text):.3g}")


def test_importances_count_pruned_trials_and_need_ten() -> None:
    study = optuna.create_study()
    for n in range(12):
        assert bool(importances(study)) == (n >= 10)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        trial.suggest_float("y", 0, 1)
        trial.report(x, 1)
        pruned = n % 3 > 0
        study.tell(trial, None if pruned else x, optuna.trial.TrialState.PRUNED if pruned else None)
    found = importances(study)
    assert list(found) == ["x", "y"] and found["x"] > 0.5 and sum(found.values()) == pytest.approx(1)


@pytest.mark.slow
def test_searches_that_are_really_killed_end_as_if_they_had_not_been() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.search", "--kills", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "identical" in done.stdout, done.stdout + done.stderr
