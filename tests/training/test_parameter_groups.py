"""Parameter groups, the objective and clipping: the effect of one optimiser step."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from charlm.data.batch import IGNORE, Batch
from charlm.errors import UsageError
from charlm.models.lesson.from_scratch import ScanReLU, ScanTanh
from charlm.models.recurrent import GRU, LSTM
from charlm.training.module import CharLM
from charlm.training.objective import Objective
from charlm.training.parameter_groups import ParameterGroups, parameter_groups
from tests.helpers import SMALL, char_lm, data_module, run_train, trainer

V = 7


def names(network: torch.nn.Module, group: dict[str, Any]) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in network.named_parameters() if id(p) in wanted}


def test_without_options_the_parameters_come_as_they_are() -> None:
    network = GRU(V, 4, 6)
    none = {part: {"lr": None, "weight_decay": None} for part in ("embedding", "recurrent", "head")}
    for options in ({}, none, {"embedding": None, "recurrent": None, "head": None}):
        assert [id(p) for p in parameter_groups(network, ParameterGroups(**options))] == [
            id(p) for p in network.parameters()
        ]


def test_every_parameter_is_in_exactly_one_group_with_its_options() -> None:
    network = LSTM(V, 4, 6, 2)
    options = ParameterGroups(embedding={"lr": 0.1}, recurrent={"weight_decay": 0.2, "lr": None}, head={})
    groups = {group["name"]: group for group in parameter_groups(network, options)}
    assert set(groups) == {"embedding", "recurrent", "rest"}
    assert names(network, groups["embedding"]) == {"embedding.weight"}
    assert names(network, groups["rest"]) == {"head.weight", "head.bias"}
    assert all(name.startswith("recurrent.") for name in names(network, groups["recurrent"]))
    assert sum(len(group["params"]) for group in groups.values()) == len(list(network.parameters()))
    assert groups["embedding"]["lr"] == 0.1 and "lr" not in groups["recurrent"]
    assert groups["recurrent"]["weight_decay"] == 0.2


def test_scan_networks_have_parts_too() -> None:
    network = ScanReLU(V, 5)
    groups = parameter_groups(network, ParameterGroups(embedding={"lr": 1.0}, recurrent={"lr": 1.0}, head={"lr": 1.0}))
    assert {group["name"]: names(network, group) for group in groups} == {
        "embedding": {"W_x"},
        "recurrent": {"W_h", "b_h", "b_x"},
        "head": {"W_y", "b_y"},
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"body": {"lr": 1}}, "body is not an option"),
        ({"head": {"momentum": 1}}, "head.momentum is not an option"),
        ({"head": {"lr": -1}}, "head.lr=-1 must be at least 0"),
        ({"head": {"lr": "fast"}}, "head.lr='fast' must be a number"),
        ({"head": {"lr": True}}, "head.lr=true must be a number"),
        ({"head": 3}, "head=3 must be a section of options"),
    ],
)
def test_bad_groups_are_named(options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ParameterGroups(**options)


def test_a_part_that_is_not_there_is_named() -> None:
    class Headless(GRU):
        def parameter_group(self, name: str) -> str:
            return "recurrent"

    with pytest.raises(UsageError, match="parameter_groups.head: this model has no parameters there"):
        parameter_groups(Headless(V, 4, 6), ParameterGroups(head={"lr": 1.0}))


def test_an_optimiser_without_weight_decay_says_so() -> None:
    module = CharLM(GRU(V, 4, 6), torch.optim.LBFGS, groups=ParameterGroups(head={"weight_decay": 0.1}))
    with pytest.raises(UsageError):
        module.configure_optimizers()
    module = CharLM(
        GRU(V, 4, 6), functools.partial(torch.optim.Rprop, lr=0.1), groups=ParameterGroups(head={"weight_decay": 0.1})
    )
    with pytest.raises(UsageError, match="parameter_groups: Rprop has no weight_decay"):
        module.configure_optimizers()


def test_sgd_moves_each_part_by_its_own_rate_and_decay() -> None:
    torch.manual_seed(0)
    network = GRU(V, 4, 6).double()
    options = {"embedding": {"lr": 0.0}, "recurrent": {"lr": 0.1, "weight_decay": 0.5}, "head": {"weight_decay": 0.25}}
    module = CharLM(network, functools.partial(torch.optim.SGD, lr=1.0), groups=ParameterGroups(**options))
    (optimizer,), _ = module.configure_optimizers()
    module.training_step(Batch(*torch.randint(V, (2, 3, 5)), True), 0).backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in network.named_parameters()}
    optimizer.step()
    for name, p in network.named_parameters():
        w, g = before[name]
        lr, decay = {"embedding": (0.0, 0.0), "recurrent": (0.1, 0.5), "head": (1.0, 0.25)}[
            network.parameter_group(name)
        ]
        torch.testing.assert_close(p.detach(), w - lr * (g + decay * w))


def objective(name: str = "mean", l2: float = 0.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    network = ScanTanh(V, 5).double()
    with torch.no_grad():
        network.b_h += 1  # a penalty that included biases would change
    x, y = torch.randint(V, (2, 3, 4))
    return (*Objective(reduction=name, l2=l2)(network(x)[0], y, network), network, x, y)


def test_the_mean_and_the_sum() -> None:
    loss, nats, penalty, network, x, y = objective("mean")
    expected = F.cross_entropy(network(x)[0].flatten(0, 1), y.flatten())
    assert loss.item() == nats.item() == pytest.approx(expected.item()) and penalty is None
    loss, nats, _, network, x, y = objective("sum")
    by_row = F.cross_entropy(network(x)[0].flatten(0, 1), y.flatten(), reduction="none").view(3, 4).sum(1)
    assert loss.item() == pytest.approx(by_row.mean().item())
    assert nats.item() == pytest.approx(by_row.mean().item() / 4)


def test_the_penalty_is_on_the_three_matrices_and_not_in_the_reported_loss() -> None:
    plain, *_ = objective("sum")
    loss, nats, penalty, network, *_ = objective("sum", 0.01)
    expected = 0.01 * sum((w.detach() ** 2).sum().item() for w in (network.W_x, network.W_h, network.W_y))
    assert penalty.item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(plain.item() + expected)
    assert nats.item() == pytest.approx(plain.item() / 4)
    loss.backward()
    decayed = network.W_h.grad.clone()
    network.zero_grad()
    objective_loss = Objective(reduction="sum")(network(objective()[4])[0], objective()[5], network)[0]
    objective_loss.backward()
    torch.testing.assert_close(decayed, network.W_h.grad + 0.02 * network.W_h.detach())


def test_padded_targets_do_not_count() -> None:
    module = char_lm(GRU(V, 4, 6))
    x, y = torch.randint(V, (2, 3, 4))
    y[:, 2:] = IGNORE
    loss = module.training_step(Batch(x, y, True, 6), 0)
    module2 = char_lm(module.network)
    assert loss.item() == pytest.approx(module2.training_step(Batch(x[:, :2], y[:, :2], True), 0).item())
    assert module.train_nats.count == 6


def test_the_sum_is_over_real_targets_only() -> None:
    torch.manual_seed(0)
    network = ScanTanh(V, 5).double()
    x, y = torch.randint(V, (2, 3, 4))
    y[0, 2:] = IGNORE
    by_row = F.cross_entropy(network(x)[0].flatten(0, 1), y.flatten(), reduction="none").view(3, 4).sum(1)
    assert Objective(reduction="sum")(network(x)[0], y, network)[0].item() == pytest.approx(by_row.mean().item())


def test_an_untrained_scan_network_costs_25_uniform_guesses_and_its_penalty(text: str) -> None:
    torch.manual_seed(0)
    D = 98
    network = ScanTanh(D, 100)
    x = torch.zeros(1, 25, dtype=torch.long)
    loss, nats, penalty = Objective(reduction="sum", l2=0.01)(network(x)[0], x, network)
    assert 25 * nats.item() == pytest.approx(25 * math.log(D), rel=0.25)
    assert penalty.item() == pytest.approx(0.01 * (100 + 100 + 98), rel=0.05)  # N(0, 1/rows): Σ w² = columns
    many = [
        Objective(reduction="sum")(network(ids)[0], ids, network)[1].item()
        for ids in torch.arange(D).view(D, 1, 1).expand(D, 1, 25)
    ]
    assert sum(many) / D == pytest.approx(math.log(D), rel=0.1)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"reduction": "max"}, "reduction='max' must be 'mean' or 'sum'"), ({"l2": -1}, "l2=-1 must be at least 0")],
)
def test_bad_objectives_are_named(options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Objective(**options)


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_clipping_by_value_and_by_norm(algorithm: str, text: str, tmp_path: Path) -> None:
    data = data_module(text, val=0.0, batch_size=1, bptt=25)
    torch.manual_seed(0)
    network = ScanTanh(len(data.vocab), 10)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    module = CharLM(network, functools.partial(torch.optim.SGD, lr=1.0), objective=Objective(reduction="sum", l2=0.1))
    trainer(tmp_path, max_steps=1, gradient_clip_val=0.5, gradient_clip_algorithm=algorithm, limit_val_batches=0).fit(
        module, datamodule=data
    )
    after = {name: p.detach().clone() for name, p in network.named_parameters()}
    network.load_state_dict(before)
    network.zero_grad()
    batch = next(iter(data.train_dataloader()))
    Objective(reduction="sum", l2=0.1)(network(batch.x)[0], batch.y, network)[0].backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    assert norm > 0.5
    for name, g in gradients.items():
        clipped = g.clamp(-0.5, 0.5) if algorithm == "value" else g * 0.5 / norm
        torch.testing.assert_close(after[name], before[name] - clipped, atol=1e-5, rtol=1e-4)


def test_groups_and_penalty_from_the_command_line(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_train(
        *("data=text", f"data.path={text_file}", *SMALL[1:], "logger=csv", "trainer.log_every_n_steps=1"),
        *("parameter_groups.embedding.lr=1e-4", "parameter_groups.head.weight_decay=0.1", "objective.l2=0.001"),
        f"hydra.run.dir={run}",
    )
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    groups = {group["name"]: group for group in content["optimizer_states"][0]["param_groups"]}
    assert groups["embedding"]["initial_lr"] == 1e-4 and groups["rest"]["initial_lr"] == 1e-3
    assert groups["head"]["weight_decay"] == 0.1
    with (run / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["train/penalty"]) > 0 for row in rows if row["train/penalty"])
    assert any(row["train/penalty"] for row in rows)
