"""The neural cache: recent characters are predicted again where the network is in a similar state.

    p(c) = (1 − λ)·p_network(c) + λ·p_cache(c),    p_cache(c) ∝ Σᵢ [xᵢ₊₁ = c]·exp(θ·h·hᵢ)

over the last `size` features hᵢ and the characters xᵢ₊₁ that followed them (Grave et al. 2017, "Improving Neural
Language Models with a Continuous Cache", arXiv:1612.04426, here with characters in place of words).

Shapes: B batch, T time, M characters in the cache, H hidden, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from charlm.models.network import Network, Output
from charlm.models.state import State

COLUMNS = 2048  # of all rows, read at once: bounds the memory for similarities


class Cached(Network):
    """`network` with a cache of the last `size` characters, of weight `share` (λ) and sharpness `theta` (θ).

    The state is that of the network, the features (B, M, H) and the characters (B, M) in the cache, and the feature
    (B, 0 or 1, H) whose next character is not known yet.
    """

    def __init__(self, network: Network, theta: float, share: float, size: int = 2000) -> None:
        super().__init__()
        self.network, self.window = network, network.window
        self.theta, self.share, self.size = theta, share, size

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Logits after each input, or after the last one if `network` predicts after a window."""
        output = self.at_every_step(x_BT, state)
        return output if self.window is None else Output(output.logits[:, -1:], output.state, output.hidden[:, -1:])

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Logits after each input."""
        outputs = []
        for piece_BT in x_BT.split(max(1, COLUMNS // len(x_BT)), 1):
            output, dots_BTM, values_BM = self.similarities(piece_BT, state)
            state = output.state
            outputs.append(output._replace(logits=mixed(output.logits, dots_BTM, values_BM, self.theta, self.share)))
        logits, hidden = (torch.cat([getattr(output, name) for output in outputs], 1) for name in ("logits", "hidden"))
        return Output(logits, outputs[-1].state, hidden)

    def initial_state(self, batch_size: int) -> State:
        """That of the network, and an empty cache."""
        return self.network.initial_state(batch_size), *self._empty(batch_size)

    def _empty(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """An empty cache. The number of features is not known before the network has read anything."""
        nothing = next(self.parameters()).new_zeros(batch_size, 0, 0)
        return nothing, nothing.new_zeros((batch_size, 0), dtype=torch.int64), nothing

    def similarities(self, x_BT: Tensor, state: State | None) -> tuple[Output, Tensor, Tensor]:
        """The network's output, h·hᵢ (B, T, M) with −∞ for what is not in the cache at a step, and the characters."""
        inner, keys, values, last = (None, *self._empty(len(x_BT))) if state is None else state
        assert isinstance(keys, Tensor) and isinstance(values, Tensor) and isinstance(last, Tensor)
        output = self.network.at_every_step(x_BT, inner)
        h_BTH, columns = output.hidden, x_BT.shape[1]
        before = torch.cat([part for part in (last, h_BTH[:, :-1]) if part.shape[1]] or [h_BTH[:, :0]], 1)
        keys_BMH = torch.cat([keys, before], 1) if keys.shape[1] else before
        values_BM = torch.cat([values, x_BT[:, columns - before.shape[1] :]], 1)
        count = values_BM.shape[1]
        # The newest character in the cache is the one just read.
        newest_T1 = torch.arange(count - columns, count, device=x_BT.device)[:, None]
        places_M = torch.arange(count, device=x_BT.device)
        there_TM = (places_M <= newest_T1) & (places_M > newest_T1 - self.size)
        dots_BTM = (h_BTH @ keys_BMH.transpose(1, 2)).masked_fill(~there_TM, -math.inf)
        kept = keys_BMH[:, -self.size :], values_BM[:, -self.size :]
        return output._replace(state=(output.state, *kept, h_BTH[:, -1:])), dots_BTM, values_BM


def mixed(logits_BTV: Tensor, dots_BTM: Tensor, values_BM: Tensor, theta: float, share: float) -> Tensor:
    """The logarithms of the mixture; those of the network alone where the cache is empty."""
    logs = logits_BTV.log_softmax(-1, dtype=torch.promote_types(logits_BTV.dtype, torch.float32))
    some = dots_BTM.isfinite().any(-1, keepdim=True)
    weights = torch.where(some, theta * dots_BTM, 0.0).softmax(-1).to(logs)
    cached = torch.zeros_like(logs).scatter_add_(-1, values_BM.unsqueeze(1).expand(weights.shape), weights)
    together = torch.logaddexp(logs + math.log1p(-share), cached.log() + math.log(share))
    return torch.where(some, together, logs)
