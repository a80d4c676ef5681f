"""Dynamic evaluation: a network that goes on learning from the text that it reads.

After every segment of the text, its weights take a step of gradient descent on the loss of that segment (Mikolov et
al. 2010; Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models", arXiv:1709.07432):

    sgd   θ ← θ − η·g                                      + λ·(θ₀ − θ)
    rms   θ ← θ − η·g / (r + ε)                            + λ·d·(θ₀ − θ),   d = min(r / mean(r), 1/λ)

with the gradient g of the mean loss, the trained weights θ₀, and the root mean square r of the gradients in training
text. Every character is predicted before anything is learned from it.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.models.network import Network, Output
from charlm.models.state import State, detach, map_state

EPSILON = 1e-5


class Dynamic(Network):
    """`network`, which learns from what it reads, `segment` characters at a time, with learning rate `rate`.

    `prior` (λ) draws the weights back to the trained ones. With `squares`, the means of the squared gradients (see
    `mean_squares`), the rule is ``rms``, else ``sgd``. The rows of a batch share one set of weights, which learns from
    all of them. Reading from the initial state (None) starts with the trained weights; any other state than the one
    returned last starts a new segment. `network` itself stays as it is.
    """

    _state: State | None  # with its graph, which the one that the caller gets has not
    _given: State | None
    _read: int
    _inputs: list[Tensor]
    _logits: list[Tensor]

    def __init__(
        self, network: Network, rate: float, segment: int = 20, prior: float = 0.0, squares: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.network, self.window = copy.deepcopy(network), network.window
        self.rate, self.segment, self.prior = rate, segment, prior
        self._weights = adapted(self.network)
        self._trained = [weight.detach().clone() for weight in self._weights]
        roots = [square.sqrt() for square in squares]
        self._roots = [root + EPSILON for root in roots]
        mean = sum(root.sum() for root in roots) / max(sum(root.numel() for root in roots), 1)
        self._pulls = [(root / mean).clamp(max=1 / prior) * prior if prior else root * 0 for root in roots]
        self._begin(None)

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Logits after each input, or after the last one if `network` predicts after a window."""
        output = self.at_every_step(x_BT, state)
        return output if self.window is None else Output(output.logits[:, -1:], output.state, output.hidden[:, -1:])

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """Logits after each input. Learns from a segment as soon as the character after it is read."""
        with torch.inference_mode(False), torch.enable_grad(), no_cudnn():
            x_BT = x_BT.clone()  # nothing is learned from tensors of the inference mode
            if state is None:
                self.reset()
            elif state is not self._given:
                self._begin(map_state(torch.clone, state))
            logits, hidden = [], []
            while x_BT.shape[1]:
                if self._read == self.segment:
                    self._learn(x_BT[:, :1])
                rest = self.segment - self._read
                piece_BT, x_BT = x_BT[:, :rest], x_BT[:, rest:]
                output = self.network.at_every_step(piece_BT, self._state)
                self._state, self._read = output.state, self._read + piece_BT.shape[1]
                self._inputs.append(piece_BT)
                self._logits.append(output.logits)
                logits.append(output.logits.detach())
                hidden.append(output.hidden.detach())
            assert self._state is not None
            self._given = detach(self._state)
            return Output(torch.cat(logits, 1), self._given, torch.cat(hidden, 1))

    def initial_state(self, batch_size: int) -> State:
        """That of the network."""
        return self.network.initial_state(batch_size)

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to the trained weights."""
        for weight, trained in zip(self._weights, self._trained, strict=True):
            weight.copy_(trained)
        self._begin(None)

    def _begin(self, state: State | None) -> None:
        """Start a segment in `state`."""
        self._state, self._given = state, None
        self._read, self._inputs, self._logits = 0, [], []

    def _learn(self, next_B1: Tensor) -> None:
        """Take a step on the loss of the segment, whose last target is `next_B1`, and start another one."""
        targets_BT = torch.cat([*self._inputs, next_B1], 1)[:, 1:]
        gradients = gradients_of(self._weights, torch.cat(self._logits, 1), targets_BT)
        with torch.no_grad():
            if self._roots:
                torch._foreach_div_(gradients, self._roots)
            if self.prior:
                away = torch._foreach_sub(self._trained, self._weights)
                if self._roots:
                    torch._foreach_mul_(away, self._pulls)
                else:
                    torch._foreach_mul_(away, self.prior)
                torch._foreach_add_(self._weights, away)
            torch._foreach_add_(self._weights, gradients, alpha=-self.rate)
        assert self._state is not None
        self._begin(detach(self._state))


def mean_squares(network: Network, ids_BT: Tensor, segment: int) -> list[Tensor]:
    """The mean of the squared gradient of each weight over the segments of `ids_BT`, read with the state carried."""
    network = copy.deepcopy(network)
    weights = adapted(network)
    with torch.inference_mode(False), torch.enable_grad(), no_cudnn():
        squares, count = [torch.zeros_like(weight) for weight in weights], 0
        state: State | None = None
        for x_BT, y_BT in zip(ids_BT[:, :-1].split(segment, 1), ids_BT[:, 1:].split(segment, 1), strict=True):
            logits, state, _ = network.at_every_step(x_BT, None if state is None else detach(state))
            gradients = gradients_of(weights, logits, y_BT)
            torch._foreach_addcmul_(squares, gradients, gradients)
            count += 1
    return [square / max(count, 1) for square in squares]


def adapted(network: Network) -> list[Tensor]:
    """The weights of `network`, which from now on have gradients."""
    weights: list[Tensor] = [weight.requires_grad_(True) for weight in network.parameters()]
    return weights


def gradients_of(weights: Sequence[Tensor], logits_BTV: Tensor, targets_BT: Tensor) -> list[Tensor]:
    """The gradient of the mean loss; zeros for a weight that it does not depend on."""
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return list(torch.autograd.grad(loss, weights, materialize_grads=True))


def no_cudnn() -> AbstractContextManager[None]:
    """cuDNN has gradients of recurrent layers in training mode only."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
    return flags
