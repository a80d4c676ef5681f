"""Averaged weights against a recursion written by hand, and runs that stop when they no longer improve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging

import charlm
from charlm.models.recurrent import GRU
from charlm.training.callbacks.ema import EMA
from tests.faults.compare import differences
from tests.helpers import SMALL, char_lm, data_module, run_train, summary, trainer


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_after_every_step(decay: float, text: str, tmp_path: Path) -> None:
    data, seen = data_module(text), []
    average = EMA(decay)

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            averaged = average._average_model.module.network.head.weight
            seen.append([w.detach().double().clone() for w in (pl_module.network.head.weight, averaged)])

    module = char_lm(GRU(len(data.vocab), 4, 6))
    trainer(tmp_path, max_steps=40, max_epochs=-1, callbacks=[average, Watch()]).fit(module, datamodule=data)
    assert len(seen) == 40
    expected = seen[0][0]
    for n, (weights, averaged) in enumerate(seen):
        if n:
            share = min(decay, (1 + n) / (10 + n))
            expected = share * expected + (1 - share) * weights
        torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def validation(text: str, folder: Path, *callbacks: pl.Callback) -> float:
    """The validation loss after 120 steps."""
    data = data_module(text, val=0.1, batch_size=8, bptt=8)
    torch.manual_seed(0)
    run = trainer(folder, max_epochs=5, limit_train_batches=24, callbacks=list(callbacks))
    run.fit(char_lm(GRU(len(data.vocab), 8, 32)), datamodule=data)
    assert run.global_step == 120
    return run.callback_metrics["val/nats"].item()


def test_a_short_run_is_not_held_back_by_its_first_weights(text: str, tmp_path: Path) -> None:
    raw, warm = validation(text, tmp_path), validation(text, tmp_path, EMA(0.999))
    cold = validation(text, tmp_path, EMAWeightAveraging(decay=0.999, use_buffers=False))
    assert cold > raw + 0.2 and warm < raw + 0.05, (cold, raw, warm)


def test_samples_are_of_the_weights_that_are_saved(text_file: Path, tmp_path: Path) -> None:
    options = [
        "data=text",
        f"data.path={text_file}",
        "data.bptt=8",
        "callbacks.samples.temperature=1",
        "optimizer.lr=0.05",
    ]
    found = {}
    for callbacks in ("default", "ema"):
        result = charlm.train(*SMALL, *options, f"callbacks={callbacks}", folder=tmp_path / callbacks)
        sample = (result.folder / "samples.txt").read_text().split("--- epoch 2\n")[1][:-1]
        assert sample == charlm.load(result.folder / "checkpoints/last.ckpt").generate("", 300, temperature=1.0, seed=0)
        found[callbacks] = sample
    assert found["default"] != found["ema"]


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8"]


def test_a_run_with_lightnings_average_still_resumes(base: list[str], tmp_path: Path) -> None:
    old = ["callbacks=ema", "callbacks.average._target_=pytorch_lightning.callbacks.EMAWeightAveraging"]
    old += ["+callbacks.average.use_buffers=false", "schedule=constant"]
    run_train(*base, *old, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/whole")
    run_train(*base, *old, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    run_train(f"resume={tmp_path}/run", "trainer.max_epochs=3")
    found = differences(tmp_path / "whole", tmp_path / "run")
    assert [d for d in found if "max_epochs is 3 and 1" not in d] == []


STOP = ("callbacks.early_stopping.min_delta=9.0", "callbacks.early_stopping.patience=2", "trainer.max_epochs=8")


@pytest.mark.parametrize("callbacks", ["early_stopping", "[default,ema,early_stopping]"])
def test_a_run_stops_when_it_no_longer_improves_and_says_so(
    callbacks: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_train(*base, f"callbacks={callbacks}", *STOP, f"hydra.run.dir={run}")
    reason = "stopped early in epoch 3: the last 2 validations brought no new lowest loss"
    out = capsys.readouterr().out
    assert out.count(reason) == 1 and "best validation loss" in out
    assert summary(run)["epochs"] == 3
    assert (run / "samples.txt").exists()
    run_train(f"resume={run}")
    assert f"this run had already {reason}" in capsys.readouterr().out and summary(run)["epochs"] == 3
    run_train(f"resume={run}", "trainer.max_epochs=9")  # it waits for two validations again
    assert "stopped early in epoch 5: the last 2 validations" in capsys.readouterr().out


def test_a_run_that_never_stops_early_says_nothing(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(*base, "callbacks=early_stopping", f"hydra.run.dir={tmp_path}/run")
    assert "early" not in capsys.readouterr().out


@pytest.mark.parametrize("without", ["data.val=0", "trainer.limit_val_batches=0"])
def test_early_stopping_without_validation_is_refused_at_the_start(
    without: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, "callbacks=early_stopping", without, f"hydra.run.dir={tmp_path}/run")
    err = capsys.readouterr().err
    assert err.startswith("error: callbacks.early_stopping needs a validation loss") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
