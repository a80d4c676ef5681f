"""How well a network predicts a text: losses in nats, accumulated in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.models.network import Network
from charlm.models.state import State


@torch.inference_mode()
def score(network: Network, ids_T: Tensor, chunk: int) -> float:
    """Mean nats per character after the first, read from the initial state in chunks of `chunk` characters."""
    return sum(nats_T.sum().item() for nats_T in in_chunks(network, ids_T, chunk)) / (len(ids_T) - 1)


@torch.inference_mode()
def score_each(network: Network, ids_T: Tensor, chunk: int) -> list[float]:
    """The nats of every character after the first, which sum to `score` times their number."""
    return [nats for nats_T in in_chunks(network, ids_T, chunk) for nats in nats_T.tolist()]


def in_chunks(network: Network, ids_T: Tensor, chunk: int) -> Iterator[Tensor]:
    """The losses of the characters after the first, float64 (at most `chunk`), with the state carried over."""
    state = None
    for x_T, y_T in zip(ids_T[:-1].split(chunk), ids_T[1:].split(chunk), strict=True):
        nats_BT, state = losses(network, x_T.unsqueeze(0), y_T.unsqueeze(0), state)
        yield nats_BT[0]


@torch.inference_mode()
def score_by_position(network: Network, ids_T: Tensor, length: int, rows: int) -> list[float]:
    """Mean nats at each position of consecutive windows of `length` characters, each read from the initial state."""
    windows = ids_T.unfold(0, length + 1, length)
    total = torch.zeros(length, dtype=torch.float64)
    for chosen in windows.split(rows):
        total += losses(network, chosen[:, :-1], chosen[:, 1:], None)[0].sum(0).cpu()
    return (total / len(windows)).tolist()


def losses(network: Network, x_BT: Tensor, y_BT: Tensor, state: State | None) -> tuple[Tensor, State]:
    """The loss at every step, float64 (B, T), and the state after the last step."""
    device = next(network.parameters()).device
    logits, state, _ = network.at_every_step(x_BT.to(device), state)
    nats = F.cross_entropy(logits.double().flatten(0, 1), y_BT.to(device).flatten(), reduction="none")
    return nats.view_as(y_BT), state
