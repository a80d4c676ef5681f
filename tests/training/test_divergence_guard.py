"""A run that is interrupted or diverges stops cleanly and leaves a good checkpoint."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import charlm
from charlm.models.recurrent import GRU
from charlm.training.callbacks.divergence_guard import PATIENCE, Diverged, DivergenceGuard
from charlm.training.interrupt import Interrupt, Interrupted
from charlm.training.module import CharLM
from tests.faults.compare import differences
from tests.helpers import SMALL, char_lm, data_module, run_train, trainer

Step = Callable[[CharLM, torch.Tensor, int], torch.Tensor | None]


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.max_epochs=6"]


def after_each_step(patch: pytest.MonkeyPatch, change: Step) -> None:
    """Pass the loss of every training step to `change`, which may replace it. Steps count from 1; an epoch has 28."""
    original, count = CharLM.training_step, iter(range(1, 10**9))

    def training_step(self: CharLM, *arguments: Any) -> torch.Tensor:
        loss = original(self, *arguments)
        changed = change(self, loss, next(count))
        return loss if changed is None else changed

    patch.setattr(CharLM, "training_step", training_step)


def stopped(*arguments: str, status: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        run_train(*arguments)
    assert caught.value.code == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_stops_the_run_at_once(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    def broken(self: CharLM, loss: torch.Tensor, step: int) -> None:
        if step == 40:
            self.step_nats = self.step_nats * value

    after_each_step(monkeypatch, broken)
    run = tmp_path / "run"
    err = stopped(*base, f"hydra.run.dir={run}", status=2, capsys=capsys)
    assert err.startswith("error: training diverged at step 40 in epoch 2: the loss is") and err.count("\n") == 1
    assert "optimizer.lr=0.001" in err and "trainer.gradient_clip_val=1" in err and "best.ckpt, " in err
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 28
    assert charlm.load(run).score("abc") < 10


def test_broken_weights_are_never_saved(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step breaks the weights while its loss is still finite; only the next loss would show it."""

    def broken(self: CharLM, loss: torch.Tensor, step: int) -> torch.Tensor | None:
        return loss * math.nan if step == 35 else None

    after_each_step(monkeypatch, broken)
    run = tmp_path / "run"
    err = stopped(*base, "checkpoint.every_steps=7", f"hydra.run.dir={run}", status=2, capsys=capsys)
    assert "training diverged at step 35 in epoch 2: weights are not finite" in err
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 28


def test_a_loss_that_explodes_stops_the_run_and_what_was_good_is_kept(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exploding(self: CharLM, loss: torch.Tensor, step: int) -> None:
        if step > 60:
            self.step_nats = torch.tensor(3 * math.log(9) + 1e-3)  # the text has 9 symbols

    after_each_step(monkeypatch, exploding)
    run = tmp_path / "run"
    err = stopped(*base, "checkpoint.every_steps=7", f"hydra.run.dir={run}", status=2, capsys=capsys)
    assert f"diverged at step {60 + PATIENCE} in epoch 6" in err and f"for {PATIENCE} steps" in err
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 56


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = CharLM._evaluate
    monkeypatch.setattr(CharLM, "_evaluate", lambda self, *a: (evaluate(self, *a), self.nats.update(math.inf, 1)))
    err = stopped(*base, f"hydra.run.dir={tmp_path}/run", status=2, capsys=capsys)
    assert "in epoch 1: the validation loss is inf" in err


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([3.0] * 99, False),
        ([3.0] * 100, True),
        ([3.0] * 99 + [2.999] + [3.0] * 99, False),
        ([2.999] * 1000, False),
        ([1.0, math.nan], True),
        ([1.0, math.inf], True),
    ],
)
@pytest.mark.parametrize("every", [1, 50])
def test_what_is_too_much(losses: list[float], stops: bool, every: int, tmp_path: Path, text: str) -> None:
    """Losses are in units of a uniform guess's. On a GPU, they are checked 50 at a time."""
    data, guard = data_module(text), DivergenceGuard()
    run = trainer(tmp_path, limit_train_batches=0)
    module = char_lm(GRU(len(data.vocab), 4, 6))
    run.fit(module, datamodule=data)
    guard.on_train_start(run, module)
    guard._every = every

    def feed() -> None:
        for loss in losses:
            module.step_nats = torch.tensor(loss * math.log(len(data.vocab)))
            guard.on_train_batch_end(run, module, None, None, 0)
        guard.check_losses(run)

    if stops:
        with pytest.raises(Diverged):
            feed()
    else:
        feed()


def test_two_interrupts_stop_at_once_and_the_run_can_resume(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(*base, f"hydra.run.dir={tmp_path}/unbroken")

    def twice(self: CharLM, loss: torch.Tensor, step: int) -> None:
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        after_each_step(patch, twice)
        err = stopped(*base, f"hydra.run.dir={tmp_path}/run", status=130, capsys=capsys)
    assert "interrupt again to stop at once" in err and "python train.py resume=" in err
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 28
    run_train(f"resume={tmp_path}/run")
    assert differences(tmp_path / "unbroken", tmp_path / "run") == []


@pytest.mark.parametrize("moment", ["validation_step", "test_step"])
def test_an_interrupt_in_validation_or_test_is_no_traceback(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """In validation, it takes effect at the end of the epoch; in the final test, training is already complete."""
    base = [*base, "data.test=0.1", "trainer.max_epochs=2"]
    run_train(*base, f"hydra.run.dir={tmp_path}/unbroken")
    original = getattr(CharLM, moment)

    def interrupted(self: CharLM, *arguments: Any) -> Any:
        if arguments[1] == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(CharLM, moment, interrupted)
        err = stopped(*base, f"hydra.run.dir={tmp_path}/run", status=130, capsys=capsys)
    assert err.endswith("interrupted\n") and "resume with" in err
    steps = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert steps == (25 if moment == "validation_step" else 50)
    run_train(f"resume={tmp_path}/run")
    assert differences(tmp_path / "unbroken", tmp_path / "run") == []


def test_signals_are_taken_only_while_listening() -> None:
    before, interrupt = signal.getsignal(signal.SIGINT), Interrupt()
    interrupt.check()
    with interrupt.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            interrupt.check()
        assert caught.value.number == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_a_hangup_counts_unless_nohup_ignores_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        interrupt = Interrupt()
        with interrupt.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt = Interrupt()
        with interrupt.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_that_is_not_the_main_one_leaves_signals_alone() -> None:
    def listen() -> None:
        with Interrupt().listening():
            found.append(signal.getsignal(signal.SIGINT))

    found: list[Any] = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
