"""Learning rates compared with closed formulas, and the checkpoints at the ends of cycles."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler

from charlm.errors import UsageError
from charlm.models.recurrent import GRU
from charlm.run.build import steps_per_epoch
from charlm.run.settings import TrainerOptions
from charlm.training.callbacks.checkpoints import CheckpointOptions, Checkpoints
from charlm.training.callbacks.divergence_guard import DivergenceGuard
from charlm.training.interrupt import Interrupt
from charlm.training.schedulers import cosine, cycles_begun, sgdr, step
from tests.helpers import SMALL, char_lm, data_module, run_train, trainer


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates or (1.0,)])


def rates(scheduler: LRScheduler, steps: int, group: int = 0) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[group]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def sgdr_formula(t: int, full: float, least: float, first: int, mult: int) -> float:
    """Equation 5 of Loshchilov & Hutter, with the cycle found by summing lengths."""
    length = first
    while t >= length:
        t, length = t - length, length * mult
    return least + (full - least) / 2 * (1 + math.cos(math.pi * t / length))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(1e-4, 10),
    st.floats(0, 1e-4),
    st.integers(1, 90),
)
def test_sgdrs_rate_at_every_step(per_epoch: int, cycle: int, mult: int, full: float, least: float, steps: int) -> None:
    scheduler = sgdr(optimizer(full), per_epoch, cycle, mult, least)
    expected = [sgdr_formula(t, full, least, cycle * per_epoch, mult) for t in range(steps)]
    assert rates(scheduler, steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_sgdr_keeps_the_groups_apart() -> None:
    for group, full in enumerate((1.0, 0.1)):
        found = rates(sgdr(optimizer(1.0, 0.1), 4), 12, group)
        assert found == pytest.approx([sgdr_formula(t, full, 0, 4, 2) for t in range(12)])


@pytest.mark.parametrize(
    ("cycle", "mult", "ends"), [(1, 2, [1, 3, 7, 15]), (2, 1, [2, 4, 6, 8]), (1, 3, [1, 4, 13, 40])]
)
def test_cycles_are_counted(cycle: int, mult: int, ends: list[int]) -> None:
    scheduler, found = sgdr(optimizer(), 3, cycle, mult), []
    for taken in range(1, 3 * ends[-1] + 1):
        scheduler.optimizer.step()
        scheduler.step()
        if scheduler.T_cur == 0:
            found.append((taken / 3, cycles_begun(scheduler)))
    assert found == [(end, number) for number, end in enumerate(ends, 1)]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (2 / 3, [1] * 6 + [0.1] * 3),
        (0.6667, [1] * 6 + [0.1] * 3),
        (4, [1] * 4 + [0.1] * 5),
        (0, [0.1] * 9),
        ([2, 5], [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ([0.5, 8], [1] * 4 + [0.1] * 4 + [0.01]),
    ],
)
def test_the_rate_is_lowered_at_a_share_an_epoch_or_several(at: object, expected: list[float]) -> None:
    assert rates(step(optimizer(), 9, at), 9) == pytest.approx(expected)


def test_cosine_falls_at_every_step_to_its_end() -> None:
    found = rates(cosine(optimizer(2.0), 3, 4, 0.5), 12)
    assert found == pytest.approx([0.5 + 0.75 * (1 + math.cos(math.pi * t / 12)) for t in range(12)])


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (step, {"at": 1.5}, "at=1.5 must be a fraction of the run below 1, or a number of epochs"),
        (step, {"at": 1.0}, "at=1.0"),
        (step, {"at": -1}, "at=-1"),
        (step, {"at": math.nan}, "at=nan"),
        (step, {"at": True}, "at=true"),
        (step, {"at": "x"}, "at='x'"),
        (step, {"at": ["x"]}, "at"),
        (step, {"at": [1, 2.5]}, "at.*2.5"),
        (step, {"factor": -1}, "factor=-1"),
        (sgdr, {"eta_min": 2}, "eta_min=2.0 must not be above the learning rate 1.0"),
        (sgdr, {"cycle_epochs": 0}, "cycle_epochs=0"),
        (sgdr, {"cycle_epochs": 0.5}, "cycle_epochs=0.5"),
        (sgdr, {"cycle_mult": 1.5}, "cycle_mult=1.5"),
        (sgdr, {"eta_min": -1}, "eta_min=-1"),
        (cosine, {"epochs": 9, "eta_min": "x"}, "eta_min='x'"),
    ],
)
def test_invalid_values_are_named(make: Any, options: dict[str, Any], named: str) -> None:
    lengths = {"epochs": 9} if make is step else {"steps_per_epoch": 9}
    with pytest.raises(UsageError, match=f"^{named}"):
        make(optimizer(), **lengths, **options)
    module = char_lm(GRU(5, 4, 6), lr=1.0, scheduler=functools.partial(make, **lengths, **options))
    with pytest.raises(UsageError, match=rf"^schedule\.scheduler\.{named}"):
        module.configure_optimizers()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 10),
        ({"limit_train_batches": 4}, 4),
        ({"limit_train_batches": 0.5}, 5),
        ({"limit_train_batches": 99}, 10),
        ({"limit_train_batches": 1.0}, 10),
        ({"limit_train_batches": None}, 10),
        ({"overfit_batches": 2}, 2),
        ({"accumulate_grad_batches": 4}, 3),
        ({"accumulate_grad_batches": 3, "limit_train_batches": 7}, 3),
    ],
)
def test_steps_per_epoch_are_lightnings(settings: dict, expected: int, text: str, tmp_path: Path) -> None:
    assert steps_per_epoch(TrainerOptions(**settings), 10) == expected
    data = data_module(text[:400], val=0.2, batch_size=4, bptt=8)
    lightning = {k: v for k, v in settings.items() if v is not None}
    run = trainer(tmp_path, max_epochs=2, **lightning)
    run.fit(char_lm(GRU(len(data.vocab), 4, 6)), datamodule=data)
    assert run.global_step == 2 * steps_per_epoch(TrainerOptions(**settings), len(data.train_dataloader()))


def test_every_cycles_end_is_saved_with_the_weights_of_that_moment(text: str, tmp_path: Path) -> None:
    data = data_module(text, batch_size=8, bptt=32)
    steps = len(data.train_dataloader())
    torch.manual_seed(0)
    module = char_lm(GRU(len(data.vocab), 4, 6), scheduler=lambda o: sgdr(o, steps), interval="step")
    seen, guard = [], DivergenceGuard()

    class Watch(Checkpoints):
        def on_train_epoch_end(self, trainer: object, pl_module: torch.nn.Module) -> None:
            seen.append(pl_module.network.head.bias.detach().clone())
            super().on_train_epoch_end(trainer, pl_module)

    watch = Watch(tmp_path / "checkpoints", "val/nats", Interrupt(), guard, CheckpointOptions())
    trainer(tmp_path, max_epochs=8, callbacks=[guard, watch], enable_checkpointing=True).fit(module, datamodule=data)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["best.ckpt", "cycle-1.ckpt", "cycle-2.ckpt", "cycle-3.ckpt", "last.ckpt"]
    for number, epoch in ((1, 1), (2, 3), (3, 7)):
        content = torch.load(tmp_path / f"checkpoints/cycle-{number}.ckpt", weights_only=True)
        assert torch.equal(content["state_dict"]["network.head.bias"], seen[epoch - 1])
        assert content["epoch"] == epoch - 1


@pytest.fixture
def base(text_file: Path, tmp_path: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.batch_size=8", "data.bptt=32", *SMALL]


def test_sgdr_from_the_command_line(base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_train(*base, "schedule=sgdr", "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert {path.stem for path in (run / "checkpoints").iterdir()} == {"best", "last", "cycle-1", "cycle-2", "average"}
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    rate = rows[0].index("learning_rate")
    assert [float(row[rate]) for row in rows[1:]] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_a_shorter_sgdr_run_is_the_beginning_of_a_longer_one(base: list[str], tmp_path: Path) -> None:
    losses = []
    for epochs in (3, 5):
        run = tmp_path / str(epochs)
        run_train(*base, "schedule=sgdr", f"trainer.max_epochs={epochs}", f"hydra.run.dir={run}")
        rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
        losses.append([row[2:4] for row in rows[1:4]])
    assert losses[0] == losses[1]
    bias = [
        torch.load(tmp_path / f"{epochs}/checkpoints/cycle-2.ckpt", weights_only=True)["state_dict"][
            "network.head.bias"
        ]
        for epochs in (3, 5)
    ]
    assert torch.equal(*bias)
    assert json.loads((tmp_path / "5/summary.json").read_text())["epochs"] == 5
