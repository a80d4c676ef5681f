"""A resumed run ends exactly like an uninterrupted one, and changes that would make it another run are refused."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from charlm import UsageError
from charlm.checkpoint.paths import quoted, resume_command
from charlm.run.resume import escape
from charlm.training.module import CharLM
from tests.faults import __main__ as faults
from tests.faults.compare import compare, differences, rows
from tests.helpers import ROOT, SMALL, run_train, summary

EPOCHS = 3
Train = Callable[..., Path]


class Killed(BaseException):
    """Stands for a kill in this process, because nothing in charlm handles it."""


@pytest.fixture
def train(text_file: Path, tmp_path: Path) -> Train:
    """Trains in `folder`, and stops before training step `until` as if killed."""
    base = [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8"]
    base += ["checkpoint.every_steps=5", "model.layers=2", "model.dropout=0.2", f"trainer.max_epochs={EPOCHS}"]

    def train(folder: str, *overrides: str, until: int | None = None) -> Path:
        run = tmp_path / folder
        with pytest.MonkeyPatch.context() as patch:
            if until is not None:
                die_before(patch, until)
            arguments = overrides if any(o.startswith("resume=") for o in overrides) else (*base, *overrides)
            where = [] if arguments is overrides else [f"hydra.run.dir={run}"]
            try:
                run_train(*arguments, *where)
            except Killed:
                assert until is not None
        return run

    return train


def die_before(patch: pytest.MonkeyPatch, step: int) -> None:
    original, count = CharLM.training_step, iter(range(1, 10**9))

    def training_step(self: CharLM, *arguments: Any) -> Any:
        if next(count) == step:
            raise Killed
        return original(self, *arguments)

    patch.setattr(CharLM, "training_step", training_step)


def refusal(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `train.py` refuses."""
    with pytest.raises(SystemExit) as caught:
        run_train(*arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("until", [1, 3, 6, 17, 28, 29, 30, 57, 80])  # an epoch has 28 steps
def test_a_run_that_was_stopped_anywhere_ends_as_if_it_had_not_been(train: Train, until: int) -> None:
    unbroken, run = train("unbroken"), train("killed", until=until)
    train("killed", f"resume={run}")
    assert differences(unbroken, run) == []


@pytest.mark.parametrize(
    "limits",
    [
        ["+trainer.max_steps=70"],
        ["+trainer.max_steps=56"],  # at the end of an epoch
        ["trainer.limit_train_batches=10"],
        ["trainer.limit_train_batches=0.4"],
        ["+trainer.check_val_every_n_epoch=2"],
        ["+trainer.val_check_interval=9"],
        ["+trainer.val_check_interval=9", "+trainer.check_val_every_n_epoch=null"],
        ["+trainer.val_check_interval=5"],  # a checkpoint and a validation after the same step
        ["trainer.accumulate_grad_batches=4"],
        ["trainer.limit_val_batches=0"],
        ["trainer.precision=bf16-true"],
        ["optimizer=sgd", "optimizer.momentum=0.9"],
        ["callbacks=ema", "+trainer.val_check_interval=9"],
        ["callbacks=[ema,early_stopping]", "callbacks.early_stopping.min_delta=9.0"],
        [
            *("callbacks=early_stopping", "callbacks.early_stopping.min_delta=9.0"),
            *("callbacks.early_stopping.patience=1", "trainer.min_epochs=3"),
        ],
        ["schedule=one_cycle"],
        ["schedule=warmup_cosine"],
        ["schedule=linear"],
        ["schedule=wsd", "schedule.scheduler.warmup=15"],
        # every validation lowers the rate but the first
        ["schedule=plateau", "schedule.scheduler.patience=0", "schedule.scheduler.threshold=0.9"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("until", [12, 25])
def test_so_does_one_under_lightnings_limits(train: Train, limits: list[str], until: int) -> None:
    unbroken, run = train("unbroken", *limits), train("killed", *limits, until=until)
    train("killed", f"resume={run}")
    assert differences(unbroken, run) == []


@pytest.mark.parametrize("until", [29, 57])  # after the checkpoint at the end of an epoch
def test_plateau_counts_the_loss_of_the_epoch_that_the_checkpoint_ends(train: Train, until: int) -> None:
    plateau = ["schedule=plateau", "schedule.scheduler.patience=0", "schedule.scheduler.threshold=0.9"]
    plateau += ["schedule.scheduler.factor=0.125"]
    unbroken, run = train("unbroken", *plateau), train("killed", *plateau, until=until)
    train("killed", f"resume={run}")
    assert differences(unbroken, run) == []
    rates = [float(row["learning_rate"]) for row in rows(run / "metrics.csv")]
    assert rates == pytest.approx([1e-3, 1e-3, 1.25e-4])


@pytest.mark.parametrize("name", ["best", "cycle-1"])
def test_any_checkpoint_can_be_resumed(train: Train, name: str) -> None:
    unbroken = train("unbroken", "schedule=sgdr", "model=lstm")
    run = train("killed", "schedule=sgdr", "model=lstm", until=40)
    train("killed", f"resume={run}/checkpoints/{name}.ckpt")
    assert differences(unbroken, run) == []


@pytest.mark.parametrize("schedule", ["one_cycle", "warmup_cosine", "linear", "wsd"])
def test_a_longer_run_stays_at_the_last_rate(train: Train, schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", f"schedule={schedule}", "trainer.max_epochs=1")
    train("run", f"resume={run}", f"trainer.max_epochs={EPOCHS}")
    assert "too low to learn anything; to train on, start a new run with" in " ".join(capsys.readouterr().out.split())
    rates = [float(row["learning_rate"]) for row in rows(run / "metrics.csv")]
    assert rates[1:] == pytest.approx([1e-3 / 25e4 if schedule == "one_cycle" else 0.0] * (EPOCHS - 1), rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "sgdr"])
def test_a_finished_run_may_become_longer(train: Train, schedule: str) -> None:
    longer = train("longer", f"schedule={schedule}")
    run = train("shorter", f"schedule={schedule}", "trainer.max_epochs=1")
    train("shorter", f"resume={run}", f"trainer.max_epochs={EPOCHS}")
    # SGDR's first cycle ends with the first epoch, so the shorter run wrote its checkpoint.
    found = [d for d in differences(longer, run) if "/config/trainer/max_epochs is 3 and 1" not in d]
    assert found == []
    assert OmegaConf.load(run / ".hydra/config.yaml").trainer.max_epochs == EPOCHS


def test_a_longer_cosine_stays_at_its_lowest_rate(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", "schedule=cosine", "schedule.scheduler.eta_min=1e-5", "trainer.max_epochs=1")
    capsys.readouterr()
    train("run", f"resume={run}", f"trainer.max_epochs={EPOCHS}")
    out = " ".join(capsys.readouterr().out.split())
    assert "the scheduler was made for 1 epochs: after them the learning rate stays constant" in out
    rates = [float(row["learning_rate"]) for row in rows(run / "metrics.csv")]
    assert rates[1:] == pytest.approx([1e-5] * (EPOCHS - 1))


def test_resuming_a_finished_run_changes_nothing(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", "data.test=0.1")
    before = shutil.copytree(run, run.with_name("before"))
    capsys.readouterr()
    train("run", f"resume={run}")
    assert differences(before, run) == []
    assert (run / "metrics.csv").read_bytes() == (before / "metrics.csv").read_bytes()
    assert (
        f"this run had already finished its {EPOCHS} epochs; trainer.max_epochs={EPOCHS + 1} or more continues it"
        in capsys.readouterr().out
    )


def test_a_run_goes_on_where_it_was_moved_to(train: Train) -> None:
    unbroken, run = train("unbroken"), train("killed", until=70)
    moved = run.rename(run.with_name("moved to, here"))
    train("moved", f"resume={quoted(str(moved))}")
    assert differences(unbroken, moved) == []


def test_times_continue(train: Train) -> None:
    run = train("run", until=40)
    before = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["History"]
    train("run", f"resume={run}")
    after = summary(run)
    assert before["fit_seconds"] < after["fit_seconds"] <= after["seconds"]
    assert rows(run / "metrics.csv")[0]["seconds"] == str(before["rows"][0]["seconds"])


def test_an_override_that_changes_nothing_may_be_typed_again(train: Train) -> None:
    run = train("run", "model=lstm", until=40)
    train("run", f"resume={run}", "model=lstm", "data=text", "logger=csv", "checkpoint.every_steps=null")
    assert summary(run)["model"] == "lstm" and (run / "csv/metrics.csv").exists()


@pytest.mark.parametrize(
    "override",
    [
        "model=lstm",
        "optimizer.lr=1e-2",
        "data.bptt=16",
        "seed=1",
        "schedule=constant",
        "~callbacks.samples",
        "+trainer.min_epochs=1",
    ],
)
def test_what_would_make_it_another_run_is_refused(
    train: Train, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("run", until=20)
    capsys.readouterr()
    assert f"{override} cannot change in a resumed run" in refusal(f"resume={run}", override, capsys=capsys)
    train("run", f"resume={run}")


def test_a_run_may_not_become_shorter(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", until=20)
    capsys.readouterr()
    message = refusal(f"resume={run}", "trainer.max_epochs=2", capsys=capsys)
    assert "trainer.max_epochs=2 is less than the run's 3" in message


def test_a_text_that_has_changed_is_refused(train: Train, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, text = train("run", until=20), text_file.read_text()
    text_file.write_text(text.replace("a", "b", 1))
    capsys.readouterr()
    message = refusal(f"resume={run}", capsys=capsys)
    assert "is not the text that this run was trained on" in message and "SHA-256" in message
    text_file.write_text(text)
    moved = text_file.rename(text_file.with_name("elsewhere.txt"))
    assert "there is no file" in refusal(f"resume={run}", capsys=capsys)
    train("run", f"resume={run}", f"data.path={moved}")


def test_wrong_places_are_refused_and_nothing_is_made(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("run", until=20)
    capsys.readouterr()
    nowhere = tmp_path / "nowhere"
    assert "there is no run at resume=" in refusal(f"resume={nowhere}", capsys=capsys)
    assert not nowhere.exists()
    (tmp_path / "empty").mkdir()
    assert "no checkpoints/last.ckpt to resume from" in refusal(f"resume={tmp_path}/empty", capsys=capsys)
    assert list((tmp_path / "empty").iterdir()) == []
    shutil.copy(run / "checkpoints/last.ckpt", tmp_path)
    assert "is not in a run's checkpoints folder" in refusal(f"resume={tmp_path}/last.ckpt", capsys=capsys)
    assert "leave out hydra.run.dir" in refusal(f"resume={run}", f"hydra.run.dir={tmp_path}/x", capsys=capsys)
    text = tmp_path / "text.txt"
    assert "there is no run" in refusal(f"resume={text}", capsys=capsys)


def test_a_multirun_does_not_resume(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", until=20)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_train("-m", f"resume={run}", f"hydra.sweep.dir={tmp_path}/sweep")
    assert "leave out -m" in capsys.readouterr().err


def test_checkpoints_from_before_resuming_was_possible_are_refused(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train("run", until=20) / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["charlm"]["run"]["sweep"]
    torch.save(content, last)
    capsys.readouterr()
    assert "written by an older charlm" in refusal(f"resume={last}", capsys=capsys)


def test_two_processes_never_train_one_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("run", until=20)
    capsys.readouterr()
    with FileLock(run / ".hydra/lock"):
        assert "is being trained by another process" in refusal(f"resume={run}", capsys=capsys)
    train("run", f"resume={run}")


@pytest.mark.parametrize("part", ["callbacks", "loops", "optimizer_states", "lr_schedulers", "charlm_training"])
@pytest.mark.parametrize("value", [None, {}, [], 7, {"fit_loop": {"epoch_loop.batch_progress": 3}}])
def test_a_checkpoint_that_does_not_fit_is_refused(
    train: Train, part: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train("run", until=10) / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content[part] = value
    torch.save(content, last)
    before = last.read_bytes()
    capsys.readouterr()
    assert "cannot be resumed" in refusal(f"resume={last}", capsys=capsys)
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
        lambda content: content["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1).expand(9, 8)),
        lambda content: content["optimizer_states"][0]["param_groups"][0].update(betas=None),
        lambda content: content["optimizer_states"][0]["param_groups"][0].update(eps="x"),
        lambda content: content["lr_schedulers"][0].update(last_epoch="x"),
        lambda content: content["lr_schedulers"][0].update(last_epoch=10**18),
        lambda content: content["callbacks"]["History"].update(characters="x"),
        lambda content: content["callbacks"]["History"].update(rows=[{"epoch": 1}]),
        lambda content: content["charlm_training"].update(carry=torch.zeros(7)),
        lambda content: content["charlm_training"]["random"].update(torch=torch.zeros(3)),
    ],
)
def test_a_checkpoint_with_one_wrong_value_is_refused(
    train: Train, change: Callable[[dict[str, Any]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    last = train("run", until=10) / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    change(content)
    torch.save(content, last)
    capsys.readouterr()
    assert "cannot be resumed" in refusal(f"resume={last}", capsys=capsys)


@pytest.mark.parametrize("state", [None, {"rates": "abc"}, {"rates": [[1, 2, 3]], "seen": 1, "spacing": 1}])
def test_a_picture_keeps_no_run_from_being_resumed(train: Train, state: object) -> None:
    """An earlier version kept no learning rates."""
    run = train("run", "trainer.max_epochs=1")
    path = run / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    assert "LossPicture" in content["callbacks"]
    content["callbacks"]["LossPicture"] = state
    if state is None:
        del content["callbacks"]["LossPicture"]
    torch.save(content, path)
    train("run", f"resume={run}", "trainer.max_epochs=2")
    assert len(rows(run / "metrics.csv")) == 2


def test_links_in_a_run_folder_lead_nothing_astray(train: Train, tmp_path: Path) -> None:
    unbroken, run = train("unbroken"), train("run", until=40)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / ".hydra/config.yaml").unlink()
    for name in (".metrics.csv.tmp", "checkpoints/.last.ckpt.tmp", ".hydra/config.yaml"):
        (run / name).symlink_to(precious)
    train("run", f"resume={run}")
    assert precious.read_text() == "mine"
    assert differences(unbroken, run) == []


def test_a_run_that_stopped_early_resumes_only_to_become_longer(train: Train) -> None:
    stop = (
        "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/nats,patience:1,min_delta:9}"
    )
    run = train("run", stop, "trainer.max_epochs=6")
    assert summary(run)["epochs"] == 2
    train("run", f"resume={run}")
    assert summary(run)["epochs"] == 2
    train("run", f"resume={run}", "trainer.max_epochs=7")
    assert summary(run)["epochs"] > 2


def test_what_was_killed_before_its_first_checkpoint_can_be_started_again(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/.hydra/config.yaml").write_text("seed: 1")
    assert summary(train("run"))["epochs"] == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_with_the_command_that_it_prints(
    train: Train, text_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    unbroken = train("unbroken", "trainer.max_epochs=12")
    run = tmp_path / "it's here"
    arguments = OmegaConf.load(unbroken / ".hydra/overrides.yaml")
    environment = {**os.environ, "HYDRA_FULL_ERROR": ""}
    with subprocess.Popen(
        [sys.executable, "train.py", *arguments, f"hydra.run.dir={quoted(str(run))}"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints/best.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err, err
    reached = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 0 < reached < 12 * 28
    (command,) = re.findall(r"^  (python train\.py .*)$", err, re.MULTILINE)
    result = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert differences(unbroken, run) == []


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_a_schedule_goes_on_after_a_real_kill(train: Train, tmp_path: Path, schedule: str) -> None:
    longer = [f"schedule={schedule}", "callbacks=[ema,early_stopping]", "trainer.max_epochs=12"]
    unbroken = train("unbroken", *longer, "callbacks.early_stopping.patience=12")
    run, arguments = tmp_path / "killed", OmegaConf.load(unbroken / ".hydra/overrides.yaml")
    with subprocess.Popen([sys.executable, "train.py", *arguments, f"hydra.run.dir={run}"], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints/best.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 0 < torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] < 12 * 28
    train("killed", f"resume={run}")
    assert differences(unbroken, run) == []


@pytest.mark.slow
def test_runs_that_are_really_killed_end_as_if_they_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", "--kills", "8", "--seed", "1", "--folder", str(tmp_path / "faults")])
    faults.main()
    assert "8 kills" in capsys.readouterr().out


def test_the_comparison_sees_every_difference(train: Train) -> None:
    one = train("one", "trainer.max_epochs=1")
    other = shutil.copytree(one, one.with_name("other"))
    assert differences(one, other) == []
    last = other / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["network.head.bias"][0] += 1e-7
    content["charlm_training"]["carry"][0, 0, 0] += 1e-7
    content["charlm_training"]["random"]["torch"][0] += 1
    torch.save(content, last)
    (other / "metrics.csv").write_text((one / "metrics.csv").read_text() * 2)
    (other / "samples.txt").write_text("")
    (other / "checkpoints/.best.ckpt.tmp").touch()
    assert len(differences(one, other)) >= 6
    assert list(compare({"a": 1.0}, {"a": 1})) and list(compare([1], [1, 2])) and list(compare({}, {"b": 0}))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_a_path_comes_through_hydras_command_line(value: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"resume={quoted(value)}"])
    parsed = OmegaConf.create({"resume": override.value()}).resume if "${" not in value else value
    assert str(parsed) == value


@given(st.recursive(st.text("$\\{}a:"), lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)))
def test_what_a_checkpoint_says_is_never_interpolated(value: object) -> None:
    config = OmegaConf.create({"value": escape(value)})
    assert OmegaConf.to_container(config, resolve=True) == {"value": value}


def test_the_command_is_for_a_shell() -> None:
    assert resume_command(Path("runs/a")) == "python train.py resume=runs/a"
    assert shlex.split(resume_command(Path("it's a=b")))[2] == "resume='it\\'s a=b'"


def test_refusals_are_usage_errors() -> None:
    with pytest.raises(UsageError):
        faults.finish(["-c", "raise SystemExit(3)"], Path("/dev/null"))


def test_a_config_that_describes_another_model_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    path = train("run", until=20) / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["charlm"]["config"]["model"]["hidden_size"] = 30_000  # more memory than the file's size warrants
    torch.save(content, path)
    capsys.readouterr()
    assert "its config describes another model" in refusal(f"resume={path.parent.parent}", capsys=capsys)


def test_a_checkpoint_cannot_read_the_environment(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    path = train("run", until=20) / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["charlm"]["config"]["callbacks"]["samples"]["prompt"] = "${oc.env:A_SECRET}"
    torch.save(content, path)
    train("run", f"resume={path.parent.parent}")
    written = (path.parent.parent / "samples.txt").read_text()
    assert "s3cr3t" not in written and "${oc.env:A_SECRET}" in written


def test_a_value_that_the_run_has_already_may_be_given(train: Train) -> None:
    run = train("run", until=20)
    train("run", f"resume={run}", "seed=42")


@pytest.mark.parametrize("typed", ["data.path=PATH", "trainer.max_epochs=9", "logger.mode=offline", "logger=none"])
def test_what_is_typed_trusts_nothing_else_in_a_checkpoint(
    train: Train, typed: str, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train("run", until=20) / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["charlm"]["config"]["data"]["corpus"] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    torch.save(content, path)
    capsys.readouterr()
    said = refusal(f"resume={path.parent.parent}", typed.replace("PATH", str(text_file)), capsys=capsys)
    assert "'os.mkdir' is named in a checkpoint" in said or "is not set by the chosen configs" in said
    assert not (tmp_path / "made").exists()
