"""One-cycle, warm-up + cosine, linear, warm-up–stable–decay and plateau, compared with formulas written down again."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.models.recurrent import GRU
from charlm.training.module import CharLM
from charlm.training.schedulers import check_interval, plateau
from charlm.training.warmups import linear, one_cycle, warmup_cosine, wsd
from tests.helpers import SMALL, data_module, run_train, trainer

MAKERS = {"one_cycle": one_cycle, "warmup_cosine": warmup_cosine, "linear": linear, "wsd": wsd}
Formula = Callable[[int, int, int], float]  # step, steps of warm-up, steps of the run → share of the way to full


def cosine_formula(t: int, w: int, n: int) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * (min(t, n) - w) / (n - w))


def linear_formula(t: int, w: int, n: int) -> float:
    return (n - min(t, n)) / (n - w)


def wsd_formula(t: int, w: int, n: int, d: int) -> float:
    return 1.0 if t <= n - d or d == 0 else 1 - ((min(t, n) - (n - d)) / d) ** 0.5


def expected(formula: Formula, steps: int, w: int, n: int, full: float, least: float) -> list[float]:
    return [full * (t + 1) / w if t < w else least + (full - least) * formula(t, w, n) for t in range(steps)]


def one_cycle_formula(t: int, w: int, n: int, first: float, top: float, last: float) -> float:
    """From `first` at step 0 to `top` at step w - 1 (w > 1), and to `last` at step n - 1."""
    peak, t = (w - 1 if w > 1 else -1), min(t, n - 1)
    begin, end, x = (first, top, t / peak) if t <= peak else (top, last, (t - peak) / (n - 1 - peak))
    return begin + (end - begin) * (1 - math.cos(math.pi * x)) / 2


def taken(scheduler: Any, steps: int, key: str = "lr") -> list[list[float]]:
    """The rate or momentum of every group in each of `steps` steps."""
    found: list[list[float]] = []
    for _ in range(steps):
        groups = scheduler.optimizer.param_groups
        found.append([group["betas"][0] if key == "beta1" else group[key] for group in groups])
        scheduler.optimizer.step()
        scheduler.step()
    return [list(column) for column in zip(*found, strict=True)]


def sgd(*rates: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates], **options)


def close(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-7, abs=1e-12)


lengths = {"epochs": st.integers(1, 5), "per_epoch": st.integers(1, 13), "share": st.floats(0, 0.99)}


@settings(max_examples=60, deadline=None)
@given(
    **lengths,
    rates=st.lists(st.floats(1e-3, 10), min_size=1, max_size=3),
    least=st.floats(0, 1e-3),
    whole=st.booleans(),
)
def test_warmup_cosine_and_linear_at_every_step(
    epochs: int, per_epoch: int, share: float, rates: list[float], least: float, whole: bool
) -> None:
    n = epochs * per_epoch
    w = min(round(share * n), n - 1)
    for make, formula in ((warmup_cosine, cosine_formula), (linear, linear_formula)):
        found = taken(make(sgd(*rates), epochs, per_epoch, w if whole else share, least), n + 7)
        for rate, column in zip(rates, found, strict=True):
            assert column == close(expected(formula, n + 7, w, n, rate, least))


@settings(max_examples=60, deadline=None)
@given(**lengths, part=st.floats(0, 1), full=st.floats(1e-3, 10), least=st.floats(0, 1e-3))
def test_wsd_at_every_step(epochs: int, per_epoch: int, share: float, part: float, full: float, least: float) -> None:
    n = epochs * per_epoch
    w = min(round(share * n), n - 1)
    d = math.floor(part * (n - w))
    if d == n:
        d -= 1
    (found,) = taken(wsd(sgd(full), epochs, per_epoch, share, d, least), n + 7)
    assert found == close(expected(lambda t, w, n: wsd_formula(t, w, n, d), n + 7, w, n, full, least))


@settings(max_examples=60, deadline=None)
@given(
    **lengths,
    rates=st.lists(st.floats(1e-3, 10), min_size=1, max_size=3),
    factors=st.tuples(st.floats(1, 100), st.floats(1, 1e4)),
    ends=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    adam=st.booleans(),
)
def test_one_cycles_rate_and_momentum_at_every_step(
    epochs: int,
    per_epoch: int,
    share: float,
    rates: list[float],
    factors: tuple[float, float],
    ends: tuple[float, float],
    adam: bool,
) -> None:
    n, (down, further), (low, high) = epochs * per_epoch, factors, ends
    w = min(round(share * n), n - 1)

    def make() -> Any:
        groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in rates]
        optimizer = torch.optim.AdamW(groups) if adam else torch.optim.SGD(groups, momentum=0.9)
        return one_cycle(optimizer, epochs, per_epoch, share, down, further, True, low, high)

    for rate, column in zip(rates, taken(make(), n + 7), strict=True):
        first, last = rate / down, rate / down / further
        assert column == close([one_cycle_formula(t, w, n, first, rate, last) for t in range(n + 7)])
    for column in taken(make(), n + 7, "beta1" if adam else "momentum"):
        assert column == close([one_cycle_formula(t, w, n, high, low, high) for t in range(n + 7)])


@given(st.lists(st.floats(0.5, 4), min_size=1, max_size=30), st.integers(0, 3), st.floats(0, 0.9))
def test_plateau_lowers_the_rate_after_losses_without_improvement(
    losses: list[float], patience: int, factor: float
) -> None:
    scheduler = plateau(sgd(1.0, 0.1), factor, patience, 0.01, 1e-3)
    best, bad, cuts = math.inf, 0, 0
    for loss in losses:
        scheduler.step(loss)
        best, bad = (loss, 0) if loss < 0.99 * best else (best, bad + 1)
        if bad > patience:
            bad, cuts = 0, cuts + 1
        for group, full in zip(scheduler.optimizer.param_groups, (1.0, 0.1), strict=True):
            assert group["lr"] == pytest.approx(max(full * factor**cuts, 1e-3) if cuts else full)


class Rates(pl.Callback):
    """What each optimiser step of a run used."""

    def __init__(self) -> None:
        self.used: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.used.append((group["lr"], group.get("momentum", group.get("betas", [0.0])[0])))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_real_run_uses_these_rates(name: str, kind: str, text: str, tmp_path: Path) -> None:
    data = data_module(text[:600], val=0.2)
    accumulated = 2
    per_epoch = math.ceil(len(data.train_dataloader()) / accumulated)
    n = 3 * per_epoch
    w = round(0.25 * n)
    make = functools.partial(MAKERS[name], epochs=3, steps_per_epoch=per_epoch, warmup=0.25)
    optimizer = {
        "adam": functools.partial(torch.optim.Adam, lr=0.02, fused=True),
        "sgd": functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, fused=True),
    }[kind]
    watch = Rates()
    module = CharLM(GRU(len(data.vocab), 4, 6), optimizer, scheduler=make, interval="step")
    run = trainer(tmp_path, max_epochs=3, callbacks=[watch], accumulate_grad_batches=accumulated)
    run.fit(module, datamodule=data)
    rates, momenta = zip(*watch.used, strict=True)
    if name == "one_cycle":
        assert list(rates) == close([one_cycle_formula(t, w, n, 0.02 / 25, 0.02, 0.02 / 25e4) for t in range(n)])
        assert list(momenta) == close([one_cycle_formula(t, w, n, 0.95, 0.85, 0.95) for t in range(n)])
        return
    formulas = {"warmup_cosine": cosine_formula, "linear": linear_formula}
    formula = formulas.get(name, lambda t, w, n: wsd_formula(t, w, n, round(0.2 * n)))
    assert list(rates) == close(expected(formula, n, w, n, 0.02, 0))
    assert set(momenta) == {0.9}


@pytest.mark.parametrize("val", [0.2, 0.0])
def test_plateau_reads_the_losses_of_a_run(val: float, text: str, tmp_path: Path) -> None:
    data, seen = data_module(text[:600], val=val), []

    class Losses(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            loss = trainer.callback_metrics.get("val/nats" if val else "train/nats")
            seen.append((trainer.optimizers[0].param_groups[0]["lr"], None if loss is None else loss.item()))

    module = CharLM(
        GRU(len(data.vocab), 4, 6),
        functools.partial(torch.optim.Adam, lr=1.0),  # too high, so that the loss goes up and down
        scheduler=functools.partial(plateau, factor=0.1, patience=0),
    )
    limits = {} if val else {"limit_val_batches": 0}
    trainer(tmp_path, max_epochs=8, callbacks=[Losses()], **limits).fit(module, datamodule=data)
    rate, best = 1.0, math.inf
    for used, loss in seen:
        if loss is not None:
            rate, best = (rate, loss) if loss < best * (1 - 1e-4) else (rate * 0.1, best)
        assert used == pytest.approx(rate)
    assert rate < 1


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (warmup_cosine, {"warmup": 1.5}, "warmup=1.5 must be a fraction of the run below 1, or a number of steps"),
        (warmup_cosine, {"warmup": 20}, "warmup=20 must be less than the run's 20 steps"),
        (linear, {"warmup": -1}, "warmup=-1"),
        (linear, {"eta_min": 2.0}, "eta_min=2.0 must not be above the learning rate 1.0"),
        (wsd, {"warmup": 0.5, "decay": 0.7}, "decay=0.7 and warmup=0.5 are longer than the run of 20 steps together"),
        (wsd, {"decay": True}, "decay=true"),
        (one_cycle, {"div_factor": 0}, "div_factor=0"),
        (one_cycle, {"max_momentum": 1.0}, "max_momentum=1.0"),
        (
            one_cycle,
            {},
            "cycle_momentum=true cannot move the momentum of SGD, which has none: set it to false, or optimizer.mom",
        ),
        (plateau, {"factor": 1.0}, "factor=1.0"),
        (plateau, {"patience": -1}, "patience=-1"),
    ],
)
def test_invalid_values_are_named(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named}"):
        make(sgd(1.0), **({} if make is plateau else {"epochs": 4, "steps_per_epoch": 5}), **options)


def test_sgd_without_momentum_keeps_it_zero_when_told() -> None:
    scheduler = one_cycle(sgd(1.0), 2, 5, cycle_momentum=False)
    assert taken(scheduler, 10, "momentum") == [[0] * 10]


@pytest.mark.parametrize("name", [*MAKERS, "plateau"])
def test_every_schedule_has_its_interval(name: str) -> None:
    make = MAKERS.get(name, plateau)
    right, wrong = ("epoch", "step") if name == "plateau" else ("step", "epoch")
    check_interval(functools.partial(make), right)
    with pytest.raises(UsageError, match=r"schedule\.interval"):
        check_interval(functools.partial(make), wrong)


@pytest.mark.parametrize("name", [*MAKERS, "plateau"])
def test_from_the_command_line(name: str, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    groups = ["parameter_groups.embedding.lr=1e-2", "data.val=0" if name == "plateau" else "data.val=0.2"]
    run_train(
        *SMALL,
        "data=text",
        f"data.path={text_file}",
        "data.bptt=8",
        f"schedule={name}",
        *groups,
        f"hydra.run.dir={run}",
    )
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
