"""Decoding: from a network and a prompt to further ids, one at a time.

Each step feeds one character and carries the recurrent state, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from charlm.errors import UsageError
from charlm.models.network import Network


class NotFinite(UsageError):
    """The network's output is not finite."""

    def __init__(self) -> None:
        super().__init__(
            "the network's output is not finite: it diverges (try a lower learning rate), or a relu network reads "
            "further than the windows that it was trained on"
        )


def next_id(logits_V: Tensor, temperature: float, rng: torch.Generator | None) -> int:
    """Sample from softmax(logits / temperature), or take the most likely id at temperature 0."""
    if not logits_V.isfinite().all():
        raise NotFinite
    if temperature == 0:
        return int(logits_V.argmax())
    # Shifted first, so that a tiny temperature cannot overflow. On the CPU, so that a seed gives the same text
    # whatever device the network is on.
    scaled = (logits_V.double() - logits_V.max()).cpu() / temperature
    return int(torch.multinomial(scaled.softmax(-1), 1, generator=rng))


@torch.inference_mode()
def generate(
    network: Network,
    prompt_T: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    rng: torch.Generator | None = None,
    first_id: int = 0,
) -> Iterator[int]:
    """Yield `length` ids that continue the prompt (int64, at least one id).

    `temperature` 0 is greedy. Ids below `first_id` (special symbols) are never chosen. The network should be in
    evaluation mode.
    """
    device = next(network.parameters()).device
    logits, state, _ = network(prompt_T.to(device).unsqueeze(0))
    for step in range(length):
        chosen = first_id + next_id(logits[0, -1, first_id:], temperature, rng)
        yield chosen
        if step + 1 < length:
            logits, state, _ = network(torch.tensor([[chosen]], device=device), state)
