"""train.py as a whole: the files of a run in every mode."""

from __future__ import annotations

import csv
import functools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.types import RunMode

import charlm
from charlm.run.instantiate import instantiate
from tests.helpers import ROOT, SMALL, run_train, summary, wandb_records
from tests.programs import environment

SUMMARY_KEYS = {
    "best_val_nats",
    "best_val_bpc",
    "best_val_perplexity",
    "epochs",
    "steps",
    "parameters",
    "characters_per_second",
    "seconds",
    "corpus",
    "corpus_sha256",
    "best_checkpoint",
    "last_checkpoint",
}


@pytest.fixture
def base(text_file: Path, tmp_path: Path) -> tuple[str, ...]:
    return (*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", f"hydra.run.dir={tmp_path}/run")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", ["rnn", "gru", "lstm"])
def test_a_run_leaves_its_files(
    model: str, base: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    best = run_train(*base, f"model={model}")
    folder = tmp_path / "run"
    made, table = summary(folder), rows(folder)
    assert SUMMARY_KEYS <= set(made)
    assert made["best_val_nats"] == best == pytest.approx(min(float(row["val_nats"]) for row in table))
    assert made["best_val_bpc"] == pytest.approx(best / math.log(2))
    assert made["best_val_perplexity"] == pytest.approx(math.exp(best))
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert made["steps"] == int(table[-1]["step"])
    assert float(table[1]["train_nats"]) < float(table[0]["train_nats"])
    for name in ("best_checkpoint", "last_checkpoint"):
        assert Path(made[name]).is_file()
    assert (folder / "samples.txt").read_text().count("--- epoch") == 2
    assert (folder / ".hydra/config.yaml").is_file()
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("parameters", "symbols", "device", "epoch 1", "epoch 2", "best validation loss", "chars/s"):
        assert word in out
    assert f"python sample.py --checkpoint {Path(made['best_checkpoint']).parent.parent}\n" in out


def test_main_returns_the_loss_to_hydras_sweepers(monkeypatch: pytest.MonkeyPatch) -> None:
    import train
    from charlm.run import compose, experiment

    monkeypatch.setattr(compose, "job_from_hydra", lambda config: (config, None))
    monkeypatch.setattr(experiment, "run", lambda settings, job: experiment.Result(settings.loss, Path(), [], {}))
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir="nowhere"), mode=RunMode.RUN)
    monkeypatch.setattr(train.HydraConfig, "get", lambda: hydra)
    assert train.main.__wrapped__(SimpleNamespace(task="train", loss=1.25, resume=None)) == 1.25


def test_the_best_checkpoint_has_the_best_validation_loss(base: tuple[str, ...], text: str, tmp_path: Path) -> None:
    # From the third epoch on, the learning rate is so high that what was learnt is lost.
    schedule = ["optimizer.lr=0.01", "schedule.scheduler.at=3", "schedule.scheduler.factor=100"]
    run_train(*base, *schedule, "trainer.max_epochs=5", "data.batch_size=1", "data.bptt=40")
    made = summary(tmp_path / "run")
    losses = [float(row["val_nats"]) for row in rows(tmp_path / "run")]
    validation = text[1800:]
    scores = [charlm.load(made[name]).score(validation) for name in ("best_checkpoint", "last_checkpoint")]
    assert scores == pytest.approx([min(losses), losses[-1]], rel=1e-5)
    assert scores[0] < scores[1]


def test_two_runs_with_one_seed_write_the_same_weights(base: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_train(*base, f"hydra.run.dir={tmp_path}/{name}")
    ours, theirs = (torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True) for n in ("a", "b"))
    assert all(torch.equal(ours["state_dict"][k], theirs["state_dict"][k]) for k in ours["state_dict"])
    figures = [[{k: v for k, v in r.items() if "second" not in k} for r in rows(tmp_path / n)] for n in ("a", "b")]
    assert figures[0] == figures[1]


def test_sampling_between_epochs_does_not_change_training(base: tuple[str, ...], tmp_path: Path) -> None:
    drop = "model.output_dropout=0.3"
    run_train(*base, drop, f"hydra.run.dir={tmp_path}/with")
    run_train(*base, drop, "callbacks=none", f"hydra.run.dir={tmp_path}/without")
    assert [r["val_nats"] for r in rows(tmp_path / "with")] == [r["val_nats"] for r in rows(tmp_path / "without")]


def test_the_checkpoint_carries_config_and_corpus(base: tuple[str, ...], text: str, tmp_path: Path) -> None:
    run_train(*base, "optimizer.lr=0.002")
    model = charlm.load(tmp_path / "run")
    assert model.config["optimizer"]["lr"] == 0.002
    assert model.corpus["sha256"] == summary(tmp_path / "run")["corpus_sha256"]
    assert "".join(sorted(set(text))) == model.vocab.chars


@pytest.mark.parametrize(
    "options",
    [
        ("data.mode=windows", "data.stride=3"),
        ("data.mode=windows", "data.split=random"),
        ("data.bptt_jitter=3",),
        ("optimizer=sgd", "schedule=constant"),
        ("optimizer=adamw", "schedule=cosine", "trainer.gradient_clip_val=1"),
        ("model.layers=2", "model.dropout=0.2", "data.lowercase=true", "data.vocab_from=train", "data.unk=true"),
        ("trainer=cpu", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1"),
        ("trainer.precision=bf16-true",),
        ("trainer.accumulate_grad_batches=2", "logger=csv", "trainer.log_every_n_steps=1"),
        ("+trainer.val_check_interval=0.5",),
    ],
)
def test_options_run(options: tuple[str, ...], base: tuple[str, ...], tmp_path: Path) -> None:
    loss = run_train(*base, "trainer.max_epochs=1", *options)
    assert loss is not None and 0 < loss < 5
    assert charlm.load(tmp_path / "run").generate("a", 5)


def test_a_validation_every_other_epoch_leaves_gaps(base: tuple[str, ...], tmp_path: Path) -> None:
    run_train(*base, "trainer.max_epochs=3", "+trainer.check_val_every_n_epoch=2")
    assert [bool(row["val_nats"]) for row in rows(tmp_path / "run")] == [False, True, False]


def test_losses_are_exact_in_half_precision(base: tuple[str, ...], text: str, tmp_path: Path) -> None:
    loss = run_train(*base, "trainer.precision=bf16-true", "data.batch_size=1", "data.bptt=40", "trainer.max_epochs=1")
    assert loss == pytest.approx(charlm.load(tmp_path / "run").score(text[1800:]), rel=0.02)


def test_a_scheduler_that_max_steps_cuts_short_is_announced(
    base: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "trainer.max_steps=3 ends this run early: the scheduler is planned for"
    for schedule, announced in {"linear": True, "constant": False}.items():
        run_train(*base, "trainer.max_steps=3", f"schedule={schedule}", f"hydra.run.dir={tmp_path}/{schedule}")
        assert (words in " ".join(capsys.readouterr().out.split())) == announced


def test_runs_that_start_in_one_second_have_folders_of_their_own(text_file: Path, tmp_path: Path) -> None:
    options = [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "trainer.max_epochs=1"]
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), f"seed={seed}", *options],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
        )
        for seed in range(3)
    ]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    assert sorted(summary(run)["seed"] for run in (tmp_path / "runs").iterdir()) == [0, 1, 2]


def test_an_interrupt_before_training_leaves_no_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, "data=python_source"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # it loads PyTorch now
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert list(tmp_path.glob("runs/*")) == []


def test_an_own_class_names_its_run(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "trainer.max_epochs=1"]
    run_train(*options, "model._target_=charlm.models.recurrent.LSTM")
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("_LSTM_text") and summary(run)["model"] == "LSTM"


def test_a_loss_is_best_among_those_of_its_kind(
    base: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch without validation is not compared with one that has it."""
    run_train(*base, "trainer.check_val_every_n_epoch=2", f"hydra.run.dir={tmp_path}/run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.endswith("best") for line in lines] == [False, True]


def test_accumulation_logs_each_step_once(base: tuple[str, ...], tmp_path: Path) -> None:
    run_train(*base, "logger=csv", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2")
    with (tmp_path / "run/csv/metrics.csv").open() as file:
        steps = [int(r["step"]) for r in csv.DictReader(file) if r["train/nats_step"]]
    assert steps == sorted(set(steps)) and steps[0] == 0 and len(steps) == summary(tmp_path / "run")["steps"]


def test_the_optimiser_gets_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    for path in (ROOT / "conf/optimizer").glob("*.yaml"):
        assert all(
            isinstance(v, int | float | bool | list)
            for v in instantiate("optimizer", OmegaConf.to_container(OmegaConf.load(path))).keywords.values()
        )


def test_without_a_validation_split(base: tuple[str, ...], tmp_path: Path) -> None:
    loss = run_train(*base, "data.val=0")
    made = summary(tmp_path / "run")
    assert loss == made["best_train_nats"]
    assert "best_val_nats" not in made
    assert {row["val_nats"] for row in rows(tmp_path / "run")} == {""}
    assert Path(made["best_checkpoint"]).is_file()


def test_a_test_split_is_scored_with_the_best_weights(base: tuple[str, ...], text: str, tmp_path: Path) -> None:
    run_train(*base, "data.test=0.2", "data.batch_size=1", "data.bptt=40")
    score = charlm.load(tmp_path / "run").score(text[1600:])
    assert summary(tmp_path / "run")["test_nats"] == pytest.approx(score, rel=1e-5)


def test_learning_rate_steps_are_recorded(base: tuple[str, ...], tmp_path: Path) -> None:
    run_train(*base, "trainer.max_epochs=3", "optimizer.lr=0.01")
    assert [float(r["learning_rate"]) for r in rows(tmp_path / "run")] == pytest.approx([0.01, 0.01, 0.001])


def test_csv_logger_writes_steps(base: tuple[str, ...], tmp_path: Path) -> None:
    run_train(*base, "logger=csv", "schedule=constant", "trainer.log_every_n_steps=5", "data.batch_size=4")
    with (tmp_path / "run/csv/metrics.csv").open() as file:
        logged = [r for r in csv.DictReader(file) if r["train/nats_step"]]
    assert [int(r["step"]) for r in logged][:3] == [4, 9, 14]
    assert all(float(r["characters_per_second"]) > 0 and float(r["learning_rate"]) == 1e-3 for r in logged)


def wandb_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The config, history rows and group of the offline W&B run below `folder`."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # W&B's process may still be writing when `finish` returns
    while not any(record.HasField("exit") for record in wandb_records(file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    config: dict[str, Any] = {}
    history, group = [], ""
    for record in wandb_records(file):
        if record.HasField("run"):
            group = record.run.run_group
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return config, history, group


def test_an_offline_wandb_run_holds_config_losses_and_samples(
    base: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run_train(*base, "logger=wandb", "trainer.log_every_n_steps=2", "optimizer.lr=0.004")
    config, history, group = wandb_run(tmp_path / "run")
    assert config["optimizer"]["lr"] == 0.004
    assert config["model"]["_target_"] == "charlm.models.recurrent.GRU"
    logged = {key for row in history for key in row}
    assert {"train/nats", "train/nats_step", "val/nats", "val/bpc", "learning_rate", "characters_per_second"} <= logged
    ours = [float(r["val_nats"]) for r in rows(tmp_path / "run")]
    assert [row["val/nats"] for row in history if "val/nats" in row] == pytest.approx(ours, rel=1e-6)
    assert [row["samples.nrows"] for row in history if "samples.nrows" in row] == [1, 2]
    assert group == ""
    out, err = capfd.readouterr()
    assert "wandb:" not in out.lower() and "wandb.ai" not in out.lower() and err == ""


def test_multirun_makes_a_folder_and_a_wandb_run_a_job(text_file: Path, tmp_path: Path) -> None:
    common = [o for o in SMALL if not o.startswith("logger")]
    data = ["data=text", f"data.path={text_file}", "data.bptt=8", f"hydra.sweep.dir={tmp_path}/sweep"]
    run_train("-m", "model=rnn,gru", "optimizer.lr=1e-3,3e-3", *common, *data, "trainer.max_epochs=1")
    folders = sorted((tmp_path / "sweep").glob("*_text"))
    assert [f.name for f in folders] == ["0_rnn_text", "1_rnn_text", "2_gru_text", "3_gru_text"]
    found = [wandb_run(folder) for folder in folders]
    assert [config["optimizer"]["lr"] for config, _, _ in found] == [1e-3, 3e-3, 1e-3, 3e-3]
    assert {group for _, _, group in found} == {"sweep"}
    assert all(Path(summary(folder)["best_checkpoint"]).resolve().is_relative_to(folder) for folder in folders)
    assert len({summary(folder)["best_val_nats"] for folder in folders}) == 4


def test_the_program_prints_no_warning_and_no_tip(text_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *SMALL[1:], "data=text", f"data.path={text_file}", "data.bptt=8"]
    done = subprocess.run([*command, f"hydra.run.dir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("warning", "tip:", "wandb:", "gpu available", "litlogger", "traceback"):
        assert word not in done.stdout.lower().replace(str(tmp_path).lower(), "")


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_the_command_that_goes_on(text_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *SMALL, "trainer.max_epochs=100000", "data=text", f"data.path={text_file}"]
    with subprocess.Popen(
        [*command, f"hydra.run.dir={tmp_path}/run"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs of a shell, as this test run may be one, ignore SIGINT.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and err.endswith("\ninterrupted\n"), err
    charlm.load(tmp_path / "run/checkpoints/last.ckpt")
    steps = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    (command,) = [line.split() for line in err.splitlines() if line.startswith("  python train.py resume=")]
    assert command[:2] == ["python", "train.py"] and steps > 0


def test_a_diverging_run_is_told_so(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("data=text", f"data.path={text_file}", "data.batch_size=4", "data.bptt=8", *SMALL, "schedule=constant")
    run_train(*base, f"hydra.run.dir={tmp_path}/good")
    out = capsys.readouterr().out
    assert "diverge" not in out and "best validation loss" in out and "write more" in out
    run_train(*base, "optimizer=sgd", "optimizer.lr=50", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/bad")
    out = capsys.readouterr().out
    assert "far worse than guessing: training diverges" in out and "training diverged  the lowest loss is" in out
    assert "best validation loss" not in out and "write more" not in out
