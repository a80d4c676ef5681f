"""The state of every random number generator that training may use, as plain values for a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def collect() -> dict[str, Any]:
    """The states of the generators of Python, NumPy and PyTorch, including those of GPUs in use."""
    numpy = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {
            **numpy,
            "state": {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)), "pos": numpy["state"]["pos"]},
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def separate(seed: int, rank: int) -> None:
    """Seed every generator for one of several processes: each draws random numbers of its own, as for dropout."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (rank + 1) * 0xD1B54A32D192ED03) % 2**63  # as in `epoch_rng`
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


def restore(state: dict[str, Any]) -> None:
    """Restore every generator to the state that `collect` returned."""
    random.setstate(state["python"])
    numpy = dict(state["numpy"])
    numpy["state"] = {**numpy["state"], "key": numpy["state"]["key"].numpy().astype(np.uint32)}
    np.random.set_state(numpy)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
