"""Every optimiser and every scheduler of PyTorch can be trained, saved, opened and resumed."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from charlm import UsageError
from charlm.checkpoint.format import pack
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.storage import Store
from charlm.models.recurrent import GRU
from charlm.run.fitting import quiet
from charlm.training.checkpoint_io import StoreIO
from charlm.training.module import CharLM
from charlm.training.resuming import check_optimizer_state
from tests.helpers import data_module, trainer

UNFIT = {
    "LBFGS": "evaluates a batch several times a step, which would carry the state too far",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "takes matrices only, and every network has biases",
}

OPTIMIZERS = sorted(
    name
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, Optimizer) and found is not Optimizer and name not in UNFIT
)

# The arguments of each scheduler besides the optimiser.
SCHEDULERS: dict[str, Any] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 2},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": lambda step: 1 / (1 + step)},
    "MultiStepLR": {"milestones": [2, 4]},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "OneCycleLR": {"max_lr": 1e-2, "total_steps": 10},
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "StepLR": {"step_size": 2},
    "ConstantLR": {},
    "LinearLR": {},
    "PolynomialLR": {},
}

# Base classes, and the scheduler that needs a loss at every step.
NO_SCHEDULERS = {"LRScheduler", "_LRScheduler", "ReduceLROnPlateau"}


def test_no_scheduler_is_forgotten() -> None:
    found = {n for n, c in vars(lr_scheduler).items() if inspect.isclass(c) and issubclass(c, LRScheduler)}
    assert found - NO_SCHEDULERS == set(SCHEDULERS)


def fit(
    folder: Path, text: str, optimizer: Any, scheduler: Any, steps: int, path: Path | None
) -> tuple[Any, pl.Trainer]:
    """Train until step `steps`, from the checkpoint `path` if there is one, and save."""
    data = data_module(text)
    spec = {"_target_": "charlm.models.recurrent.GRU", "embedding_size": 6, "hidden_size": 8}
    pl.seed_everything(0, verbose=False)
    entry = pack(spec, data.vocab, {"lowercase": False}, {}, {}, {})
    network = GRU(len(data.vocab), 6, 8)
    model = CharLM(network, optimizer, scheduler, "step", entry=entry)
    made = trainer(folder, max_steps=steps, max_epochs=-1, limit_val_batches=0, plugins=[StoreIO(Store(pytest.fail))])
    with quiet():
        made.fit(model, datamodule=data, ckpt_path=path)
    made.save_checkpoint(folder / f"{steps}.ckpt")
    return model, made


def resumes(folder: Path, text: str, optimizer: Any, scheduler: Any = None) -> None:
    """Assert that three steps, saving, resuming and three more steps equal six steps without interruption."""
    fit(folder, text, optimizer, scheduler, 3, None)
    path = folder / "3.ckpt"
    opened = load_checkpoint(path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    for name, tensor in opened.network.state_dict().items():
        assert torch.equal(tensor, stored[f"network.{name}"])
    resumed, again = fit(folder, text, optimizer, scheduler, 6, path)
    assert again.global_step == 6
    (folder / "unbroken").mkdir()
    unbroken, whole = fit(folder / "unbroken", text, optimizer, scheduler, 6, None)
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert again.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_resumes(tmp_path: Path, text: str, name: str) -> None:
    resumes(tmp_path, text, partial(getattr(torch.optim, name), lr=1e-2))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_every_fused_optimiser_resumes(tmp_path: Path, text: str, name: str) -> None:
    more = {"momentum": 0.9} if name == "SGD" else {}
    resumes(tmp_path, text, partial(getattr(torch.optim, name), lr=1e-2, fused=True, **more))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_resumes(tmp_path: Path, text: str, name: str) -> None:
    options = SCHEDULERS[name]
    made = options if callable(options) else partial(getattr(lr_scheduler, name), **options)
    resumes(tmp_path, text, partial(torch.optim.SGD, lr=1e-2, momentum=0.9), made)


@pytest.mark.parametrize("wrong", [torch.zeros(1), torch.zeros(3), torch.zeros(1).expand(2, 2), torch.zeros(2, 3).t()])
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_fused_kernel_is_never_given_a_tensor_of_another_size(name: str, wrong: torch.Tensor) -> None:
    weights = torch.nn.Parameter(torch.zeros(2, 2))
    for fused in (True, False):  # a checkpoint could enable it
        optimizer = torch.optim.Adam([weights], fused=fused)
        weights.grad = torch.ones(2, 2)
        optimizer.step()
        check_optimizer_state(optimizer)
        optimizer.state[weights][name] = wrong
        if name == "step" and wrong.numel() == 1:
            check_optimizer_state(optimizer)
        else:
            with pytest.raises(UsageError, match=f"the optimiser's {name} does not fit"):
                check_optimizer_state(optimizer)
