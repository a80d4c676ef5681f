"""The state is carried, detached and reset; means are exact; validation does not disturb training."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.checkpoint.building import build_network
from charlm.data.batch import IGNORE, Batch
from charlm.models.network import Network, Output
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.state import State
from tests.helpers import MODELS, char_lm, data_module, model_spec, trainer


class LastOnly(GRU):
    """Predicts only after a window."""

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        logits, state, hidden = super().forward(x_BT, state)
        return Output(logits[:, -1:], state, hidden[:, -1:])


class Unigram(Network):
    """Ignores its input, so that its loss has a closed form."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        logits = self.logits.expand(*x_BT.shape, -1)
        return Output(logits, self.initial_state(x_BT.shape[0]), logits)

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size, 1)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


UNBOUNDED = [name for name in MODELS if model_spec(name).get("window") is None]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_carried_losses_equal_one_long_unbroken_pass(name: str, text: str) -> None:
    torch.manual_seed(0)
    data = data_module(text, bptt=7)
    # Evaluation mode: no dropout, and batch normalisation with running statistics.
    spec = model_spec(name)
    network = build_network(spec | ({"hidden_size": 8} if "hidden_size" in spec else {}), len(data.vocab)).eval()
    module = char_lm(network)
    losses = [
        (module.training_step(batch, i).item(), batch.y.numel()) for i, batch in enumerate(data.train_dataloader())
    ]
    loader = data.train_dataloader()
    logits = network(loader.x_BL.long()).logits
    whole = F.cross_entropy(logits.flatten(0, 1), loader.y_BL.long().flatten())
    assert sum(loss * n for loss, n in losses) / sum(n for _, n in losses) == pytest.approx(whole.item(), rel=1e-5)
    assert module.train_nats.compute().item() == pytest.approx(whole.item(), rel=1e-5)
    assert module.train_nats.count == loader.y_BL.numel()


def test_first_resets_the_state_and_otherwise_it_is_carried() -> None:
    module = char_lm(GRU(5, 4, 6))
    batch = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]), True)
    fresh = module.training_step(batch, 0).item()
    assert module.training_step(batch._replace(first=False), 1).item() != fresh
    assert module.training_step(batch, 2).item() == fresh


def test_history_is_cut_so_gradients_reach_one_window_only(text: str) -> None:
    network = GRU(20, 4, 6)
    module = char_lm(network)
    x, y = torch.randint(20, (2, 2, 5))
    module.training_step(Batch(x, y, True), 0)
    network.zero_grad()
    carried = module._carry["train"].clone()
    module.training_step(Batch(x, y, False), 1).backward()
    ours = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    F.cross_entropy(network(x, carried)[0].flatten(0, 1), y.flatten()).backward()
    assert same(ours, [p.grad for p in network.parameters()])


def test_memory_is_flat_over_an_epoch(text: str) -> None:
    data = data_module(text * 3, bptt=4)
    module = char_lm(LSTM(len(data.vocab), 4, 6))
    (optimizer,), _ = module.configure_optimizers()
    alive = []
    for i, batch in enumerate(data.train_dataloader()):
        loss = module.training_step(batch, i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
        if i in (5, 300):
            gc.collect()
            alive.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    assert alive[1] <= alive[0]
    assert not module._carry["train"][0].requires_grad


def test_the_carry_is_no_part_of_the_weights(text: str) -> None:
    module = char_lm(GRU(5, 4, 6))
    before = set(module.state_dict())
    module.training_step(Batch(torch.tensor([[1]]), torch.tensor([[2]]), True), 0)
    assert set(module.state_dict()) == before
    assert all(name.startswith("network.") for name in before)


@pytest.mark.parametrize("family", [RNN, GRU, LSTM])
def test_validation_in_mid_epoch_changes_nothing(family: type[Network], text: str, tmp_path: Path) -> None:
    results = []
    for interval in (1.0, 7):
        torch.manual_seed(0)
        data = data_module(text, val=0.2)
        module = char_lm(family(len(data.vocab), 6, 8))
        trainer(tmp_path, max_epochs=2, val_check_interval=interval).fit(module, datamodule=data)
        results.append(weights(module))
    assert same(*results)


def test_sanity_check_and_validate_leave_the_train_slot_alone(text: str, tmp_path: Path) -> None:
    data = data_module(text, val=0.2)
    module = char_lm(GRU(len(data.vocab), 4, 6))
    for i, batch in zip(range(3), data.train_dataloader(), strict=False):
        module.training_step(batch, i)
    before = module._carry["train"].clone()
    trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert torch.equal(module._carry["train"], before)
    results = []
    for steps in (0, 2):
        torch.manual_seed(0)
        module = char_lm(GRU(len(data.vocab), 4, 6))
        trainer(tmp_path, num_sanity_val_steps=steps).fit(module, datamodule=data_module(text, val=0.2))
        results.append(weights(module))
    assert same(*results)


@pytest.mark.parametrize("options", [{"bptt": 7}, {"bptt": 13, "batch_size": 3}, {"mode": "windows", "stride": 3}])
def test_validation_means_are_exact_whatever_the_windows(text: str, tmp_path: Path, options: dict) -> None:
    data = data_module(text, val=333, **options)
    logits = torch.randn(len(data.vocab), generator=torch.Generator().manual_seed(0))
    module = char_lm(Unigram(logits))
    (values,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    targets = torch.cat([b.y[b.y != IGNORE] for b in data.val_dataloader()])
    if "mode" not in options:
        assert len(targets) == 332  # every character after the first
    nats = -logits.double().log_softmax(-1)[targets].mean().item()
    assert values["val/nats"] == pytest.approx(nats, rel=1e-6)
    assert values["val/bpc"] == pytest.approx(nats / math.log(2), rel=1e-6)
    assert values["val/perplexity"] == pytest.approx(math.exp(nats), rel=1e-6)
    assert values["val/accuracy"] == pytest.approx((targets == logits.argmax()).double().mean().item(), rel=1e-6)


def test_last_output_families_are_scored_on_the_last_target_only(text: str, tmp_path: Path) -> None:
    data = data_module(text, mode="windows", bptt=6, val=0.2)
    network = LastOnly(len(data.vocab), 4, 6)
    module = char_lm(network, lr=0.0)
    batches = list(data.val_dataloader())
    expected = torch.cat([F.cross_entropy(network(b.x)[0][:, 0], b.y[:, -1], reduction="none") for b in batches]).mean()
    (values,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert values["val/nats"] == pytest.approx(expected.item(), rel=1e-6)
    trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize("mode", ["streams", "windows"])
def test_two_runs_with_one_seed_are_bitwise_equal(mode: str, text: str, tmp_path: Path) -> None:
    def run(seed: int) -> list[Tensor]:
        pl.seed_everything(seed, verbose=False)
        data = data_module(text, mode=mode, seed=seed, bptt_jitter=0 if mode == "windows" else 3)
        module = char_lm(GRU(len(data.vocab), 6, 8, output_dropout=0.2))
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
        return weights(module)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


@pytest.mark.parametrize("family", [RNN, GRU, LSTM])
def test_a_model_over_fits_a_short_text(family: type[Network], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = data_module("the quick brown fox jumps over the lazy dog; " * 6, val=0.0, batch_size=1, bptt=45)
    module = char_lm(family(len(data.vocab), 16, 64), lr=1e-2)
    run = trainer(tmp_path, max_epochs=80, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert run.callback_metrics["train/nats"] < 0.05


def test_clipping_and_accumulation_work_through_lightning(text: str, tmp_path: Path) -> None:
    data = data_module(text)
    module = char_lm(GRU(len(data.vocab), 4, 6))
    run = trainer(tmp_path, gradient_clip_val=0.5, accumulate_grad_batches=2)
    run.fit(module, datamodule=data)
    assert run.global_step == math.ceil(len(data.train_dataloader()) / 2)


def test_the_scheduler_steps_each_epoch_or_each_step(text: str, tmp_path: Path) -> None:
    def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    data = data_module(text, bptt=64)
    steps = len(data.train_dataloader())
    for interval, times in (("epoch", 2), ("step", 2 * steps)):
        module = char_lm(GRU(len(data.vocab), 4, 6), lr=1.0, scheduler=halving, interval=interval)
        run = trainer(tmp_path, max_epochs=2)
        run.fit(module, datamodule=data)
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**times)
