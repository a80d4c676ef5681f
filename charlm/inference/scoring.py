"""How well a network predicts a text: losses in nats, accumulated in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.models.network import Network
from charlm.models.state import State


@torch.inference_mode()
def score(network: Network, ids_T: Tensor, chunk: int) -> float:
    """Mean nats per character after the first, read from the initial state in chunks of `chunk` characters."""
    state, total = None, 0.0
    for x_T, y_T in zip(ids_T[:-1].split(chunk), ids_T[1:].split(chunk), strict=True):
        nats_BT, state = losses(network, x_T.unsqueeze(0), y_T.unsqueeze(0), state)
        total += nats_BT.sum().item()
    return total / (len(ids_T) - 1)


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
