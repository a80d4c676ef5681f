"""What a checkpoint holds so that a run resumes exactly, and the checks of a damaged one before training resumes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint.building import arguments_of, package_of, specify
from charlm.checkpoint.format import TRAINING, pack
from charlm.checkpoint.loading import rebuild
from charlm.data.module import CharDataModule
from charlm.data.shares import share
from charlm.errors import UsageError
from charlm.models.network import Network
from charlm.models.state import State, map_state
from charlm.models.windowed import Windowed
from charlm.training import random_state, ranks
from charlm.training.metrics import MeanPerCharacter

MOST_STEPS = 10**8  # of a run

# Tensors in the shape of a weight that PyTorch's fused kernels (of Adam, AdamW, SGD and Adagrad) keep for it.
WEIGHT_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum")


def make_entry(network: Network, data: object) -> dict[str, Any]:
    """The entry that makes a checkpoint self-contained, for a network that is trained on `data` without ``train.py``.

    Raises UsageError if `data` is no `CharDataModule`, or if `charlm.load` could not build the network again.
    """
    if not isinstance(data, CharDataModule):
        raise UsageError("they need the vocabulary of a CharDataModule, given to trainer.fit as datamodule=")
    spec, weights = specify(network), network.state_dict()
    with torch.random.fork_rng(devices=[]):  # the training that follows draws the same random numbers
        rebuild(spec, len(data.vocab), weights, sys.maxsize, [package_of(spec["_target_"])])
    corpus = {"name": data.options.name, "source": data.text.source, "sha256": data.text.sha256}
    return pack(spec, data.vocab, data.normalisation, {}, corpus)


def check_symbols(network: Network, data: CharDataModule) -> None:
    """Raise UsageError if `network` was built for fewer symbols than the text in `data` has."""
    size = arguments_of(network.network if isinstance(network, Windowed) else network).get("vocab_size")
    if type(size) is int and size < len(data.vocab):
        raise UsageError(
            f"the network is built for {size} symbols, but the text has {len(data.vocab)}: build it with "
            f"vocab_size=len(data.vocab)"
        )


def training_state(carry: State | None, means: Mapping[str, MeanPerCharacter]) -> dict[str, Any]:
    """The part of a checkpoint that Lightning does not collect: carried state, running means, random states.

    Of several ranks, which call this together, rank 0 gets the state of all: the carried state of the whole batch, as
    of one process, and the random states of each. The running means are those of the whole batch on every rank.
    """
    state: dict[str, Any] = {
        "carry": carry,
        "means": {name: mean.sum_and_count() for name, mean in means.items()},
        "random": random_state.collect(),
    }
    if ranks.several():
        own = None if carry is None else map_state(Tensor.cpu, carry)
        if parts := ranks.gather((own, state["random"])):
            carries = [part for part, _ in parts]
            state |= {"carry": None if carry is None else join(carries), "ranks": [random for _, random in parts]}
    return state


def restore_training_state(
    state: Mapping[str, Any], means: Mapping[str, MeanPerCharacter], rank: int = 0, world: int = 1
) -> State | None:
    """Restore the means and the random states of a `training_state`, and return its carried state.

    `rank` of `world` gets its rows of the carried state, and its own random states if there were as many ranks before.
    """
    for name, mean in means.items():
        mean.restore(*state["means"][name])
    randoms = state.get("ranks", [state["random"]])
    if rank == 0 or len(randoms) == world:
        random_state.restore(randoms[rank])
    else:
        random_state.separate(zlib.crc32(randoms[0]["torch"].numpy().tobytes()), rank)
    carry: State | None = state["carry"]
    if carry is None or world == 1:
        return carry
    return map_state(lambda part: part[share(len(part), rank, world)], carry)


def join(parts: Sequence[State]) -> State:
    """The rows of several states, one after another."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return tuple(join(inner) for inner in zip(*parts, strict=True))


def check_checkpoint(
    checkpoint: Mapping[str, Any], trainer: Any, optimizer: Optimizer, schedulers: Sequence[LRScheduler]
) -> None:
    """Raise UsageError for a part that Lightning would not miss, or would restore with values of the wrong type.

    `optimizer` and `schedulers` are new ones for the same run.
    """
    stateful = {c.state_key for c in trainer.callbacks if has_state(c)}
    (saved,) = checkpoint["optimizer_states"]
    ours = optimizer.param_groups  # some optimisers add options later
    theirs = [{k: group.get(k) for k in new} for group, new in zip(saved["param_groups"], ours, strict=True)]
    intact = {
        TRAINING: isinstance(checkpoint[TRAINING], dict),
        "loops": types(checkpoint["loops"]["fit_loop"]) == types(trainer.fit_loop.state_dict()),
        "callbacks": stateful <= set(checkpoint["callbacks"]),
        "optimizer_states": group_types(theirs) == group_types(ours),
        "lr_schedulers": types(checkpoint["lr_schedulers"]) == types([s.state_dict() for s in schedulers]),
    }
    for part, is_intact in intact.items():
        if not is_intact:
            raise damaged(f"{part} is incomplete or has values of another type")
    for scheduler, state in zip(schedulers, checkpoint["lr_schedulers"], strict=False):
        # Other values would make counting SGDR's cycles endless.
        same = all(state[name] == getattr(scheduler, name) for name in ("T_0", "T_mult") if name in state)
        last = state.get("last_epoch", 0)
        if not same or (isinstance(last, int | float) and not 0 <= last <= MOST_STEPS):
            raise damaged("its scheduler is not the one of this run")


def has_state(callback: pl.Callback) -> bool:
    """Whether a checkpoint must have a state for `callback`; Lightning leaves out an empty one."""
    if type(callback).state_dict is pl.Callback.state_dict or getattr(callback, "optional_state", False):
        return False
    return type(callback).__module__.startswith("charlm.") or bool(callback.state_dict())


def check_optimizer_state(optimizer: Optimizer) -> None:
    """Raise UsageError for a restored tensor of a size that would make a fused kernel write past its end.

    Fused kernels do not look at the size. Every class that has one takes an option ``fused``, which the checkpoint
    itself could turn on; hence its tensors are checked, fused or not. Those of other optimisers may have any shape
    (Adafactor's rows and columns): a tensor operation raises an error for a shape that does not fit.
    """
    fusible = "fused" in optimizer.defaults or any("fused" in group for group in optimizer.param_groups)
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            fits = value.layout == torch.strided and value.device.type in ("cpu", weights.device.type)
            if fusible and name == "step":
                fits = fits and value.numel() == 1
            elif fusible and name in WEIGHT_SHAPED:
                dense = value.is_contiguous() or value.stride() == weights.stride()
                fits = fits and dense and value.shape == weights.shape
            if not fits:
                raise damaged(f"the optimiser's {name} does not fit the weights")


def damaged(problem: str) -> UsageError:
    """The error for a damaged checkpoint."""
    return UsageError(f"the checkpoint is damaged and cannot be resumed: {problem}")


def group_types(groups: Sequence[Mapping[str, Any]]) -> Any:
    """The types of an optimiser's options in each parameter group."""
    return types([{**group, "params": None} for group in groups])


def types(value: Any) -> Any:
    """The type of a value, with that of each part of a dict or list; all numbers are of one type."""
    if isinstance(value, dict):
        return {key: types(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [types(part) for part in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
