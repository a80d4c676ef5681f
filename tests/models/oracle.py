"""Row 21 of the ladder: recurrent networks in NumPy with gradients derived by hand, in float64.

Nothing here uses autograd: each cell's `backward` is the chain rule written out, and `Oracle` runs it backwards through
time. `python -m tests.models.oracle` prints the largest differences from PyTorch's gradients as JSON.

Shapes: B batch, T time, I inputs, H hidden, V vocabulary. The weight W of a linear layer maps x to x Wᵀ + b.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Array = np.ndarray
Weights = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


# Each activation and its derivative, as a function of the activation's value.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
}


class Linear:
    """y = x Wᵀ + b. `backward` adds to the gradients of W and b, and returns the gradient of x."""

    def __init__(self, weights: Weights, gradients: Weights, weight: str, bias: str | None = None) -> None:
        self.weights, self.gradients, self.weight, self.bias = weights, gradients, weight, bias

    def forward(self, x: Array) -> Array:
        y = x @ self.weights[self.weight].T
        return y if self.bias is None else y + self.weights[self.bias]

    def backward(self, x: Array, dy: Array) -> Array:
        self.gradients[self.weight] += dy.T @ x
        if self.bias is not None:
            self.gradients[self.bias] += dy.sum(0)
        return dy @ self.weights[self.weight]


class RNN:
    """h' = f(i(x) + r(h))."""

    def __init__(self, i: Linear, r: Linear, activation: str = "tanh") -> None:
        self.i, self.r, (self.f, self.df) = i, r, ACTIVATIONS[activation]

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        (h,) = state
        new = self.f(self.i.forward(x) + self.r.forward(h))
        return (new,), (x, h, new)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        x, h, new = cache
        da = dstate[0] * self.df(new)
        return self.i.backward(x, da), (self.r.backward(h, da),)


class GRU:
    """Gates r, z, n; h' = (1 - z) n + z h."""

    def __init__(self, i: Linear, r: Linear) -> None:
        self.i, self.r = i, r

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        (h,) = state
        i_r, i_z, i_n = np.split(self.i.forward(x), 3, 1)
        h_r, h_z, h_n = np.split(self.r.forward(h), 3, 1)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = np.tanh(i_n + r * h_n)
        return ((1 - z) * n + z * h,), (x, h, r, z, n, h_n)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        (dh,), (x, h, r, z, n, h_n) = dstate, cache
        da_n = dh * (1 - z) * (1 - n**2)
        da_z = dh * (h - n) * z * (1 - z)
        da_r = da_n * h_n * r * (1 - r)
        dx = self.i.backward(x, np.concatenate([da_r, da_z, da_n], 1))
        return dx, (dh * z + self.r.backward(h, np.concatenate([da_r, da_z, da_n * r], 1)),)


class LSTM:
    """Gates i, f, g, o; c' = f c + i g; h' = o tanh(c')."""

    def __init__(self, i: Linear, r: Linear) -> None:
        self.i, self.r = i, r

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        h, c = state
        a_i, a_f, a_g, a_o = np.split(self.i.forward(x) + self.r.forward(h), 4, 1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        new = f * c + i * g
        return (o * np.tanh(new), new), (x, h, c, i, f, g, o, new)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        (dh, dc), (x, h, c, i, f, g, o, new) = dstate, cache
        dc = dc + dh * o * (1 - np.tanh(new) ** 2)
        da_i, da_f = dc * g * i * (1 - i), dc * c * f * (1 - f)
        da_g, da_o = dc * i * (1 - g**2), dh * np.tanh(new) * o * (1 - o)
        da = np.concatenate([da_i, da_f, da_g, da_o], 1)
        return self.i.backward(x, da), (self.r.backward(h, da), dc * f)


class CharLoop:
    """u = relu(i(x)); h' = tanh(r(h + u)): the input is added to the state."""

    def __init__(self, i: Linear, r: Linear) -> None:
        self.i, self.r = i, r

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        (h,) = state
        u = np.maximum(self.i.forward(x), 0)
        new = np.tanh(self.r.forward(h + u))
        return (new,), (x, h, u, new)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        x, h, u, new = cache
        ds = self.r.backward(h + u, dstate[0] * (1 - new**2))
        return self.i.backward(x, ds * (u > 0)), (ds,)


class CharLoopConcat:
    """u = relu(i([h; x])); h' = tanh(r(u)): the input is concatenated to the state."""

    def __init__(self, i: Linear, r: Linear) -> None:
        self.i, self.r = i, r

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        both = np.concatenate([state[0], x], 1)
        u = np.maximum(self.i.forward(both), 0)
        new = np.tanh(self.r.forward(u))
        return (new,), (both, u, new)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        both, u, new = cache
        du = self.r.backward(u, dstate[0] * (1 - new**2))
        dboth = self.i.backward(both, du * (u > 0))
        hidden = new.shape[1]
        return dboth[:, hidden:], (dboth[:, :hidden],)


class KerasLoop:
    """h' = relu(i(x)) + f(r(h)), or h' = relu(i(x)) if there is no previous state."""

    def __init__(self, i: Linear, r: Linear, activation: str) -> None:
        self.i, self.r, (self.f, self.df) = i, r, ACTIVATIONS[activation]

    def forward(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
        u = np.maximum(self.i.forward(x), 0)
        if not state:
            return (u,), (x, None, u, None)
        v = self.f(self.r.forward(state[0]))
        return (u + v,), (x, state[0], u, v)

    def backward(self, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, tuple[Array, ...]]:
        x, h, u, v = cache
        dx = self.i.backward(x, dstate[0] * (u > 0))
        return dx, () if h is None else (self.r.backward(h, dstate[0] * self.df(v)),)


class Oracle:
    """Embedding or one-hot → cells → linear head → mean cross-entropy, and its gradients.

    `weights` are the parameters by name. `cells` makes the layers from weights and gradients. `embedding` is the name
    of the embedding, or None for one-hot inputs; `head` has the names of the head's weight and bias. `last` says
    whether to predict only after the last step, `tables` whether each position has a separate embedding.
    """

    def __init__(
        self,
        weights: Weights,
        cells: Callable[[Weights, Weights], list[Any]],
        embedding: str | None = "embedding.weight",
        head: tuple[str, str] = ("head.weight", "head.bias"),
        last: bool = False,
        tables: bool = False,
    ) -> None:
        self.weights, self.gradients = weights, {name: np.zeros_like(w) for name, w in weights.items()}
        self.cells, self.embedding = cells(weights, self.gradients), embedding
        self.head = Linear(weights, self.gradients, *head)
        self.last, self.tables = last, tables

    def run(self, x_BT: Array, y_BT: Array, states: list[tuple[Array, ...]]) -> tuple[Array, float]:
        """Logits (B, T', V) and the loss. Stores the gradients in `self.gradients`."""
        B, T = x_BT.shape
        V = len(self.weights[self.head.bias])
        ids = x_BT + V * np.arange(T) if self.tables else x_BT
        table = np.eye(V) if self.embedding is None else self.weights[self.embedding]
        inputs, caches, outputs = [table[ids[:, t]] for t in range(T)], [], []
        for t in range(T):
            h, step = inputs[t], []
            for layer, cell in enumerate(self.cells):
                states[layer], cache = cell.forward(h, states[layer])
                h = states[layer][0]
                step.append(cache)
            caches.append(step)
            outputs.append(h)
        steps = [T - 1] if self.last else list(range(T))
        logits = {t: self.head.forward(outputs[t]) for t in steps}
        loss, count = 0.0, B * len(steps)
        later: list[tuple[Array, ...]] = [tuple(np.zeros_like(part) for part in state) for state in states]
        for t in reversed(range(T)):
            dh = np.zeros_like(outputs[t])
            if t in logits:
                shifted = np.exp(logits[t] - logits[t].max(1, keepdims=True))
                p = shifted / shifted.sum(1, keepdims=True)
                loss -= np.log(p[np.arange(B), y_BT[:, t]]).sum() / count
                p[np.arange(B), y_BT[:, t]] -= 1  # the gradient of cross-entropy after softmax
                dh = self.head.backward(outputs[t], p / count)
            for layer in reversed(range(len(self.cells))):
                dh_next, *rest = later[layer]
                dh, later[layer] = self.cells[layer].backward((dh + dh_next, *rest), caches[t][layer])
            if self.embedding is not None:
                np.add.at(self.gradients[self.embedding], ids[:, t], dh)
        self.before = later  # the gradient of the initial states
        return np.stack([logits[t] for t in steps], 1), loss


def scan(step: Callable[[Any, Any], Any], start: Any, sequence: Any) -> list[Any]:
    """The lesson's scan in plain Python."""
    results, previous = [], start
    for element in sequence:
        previous = step(previous, element)
        results.append(previous)
    return results


def plain_rnn(ids: list[int], W_x: list[list[float]], W_h: list[list[float]], b: list[float]) -> list[list[float]]:
    """The states of a tanh RNN with one-hot inputs, step by step, in plain Python without arrays.

    W_x is (V, H): row i is the contribution of character i. W_h is (H, H): h' = tanh(W_x[i] + W_h h + b).
    """

    def step(h: list[float], i: int) -> list[float]:
        return [
            math.tanh(W_x[i][k] + sum(w * value for w, value in zip(W_h[k], h, strict=True)) + b[k])
            for k in range(len(h))
        ]

    return scan(step, [0.0] * len(b), ids)


def numpy_weights(network: torch.nn.Module) -> Weights:
    """A network's parameters by name, as float64 arrays. `Windowed` adds no prefix to the names."""
    return {name.removeprefix("network."): p.detach().double().numpy().copy() for name, p in network.named_parameters()}


def layers(kind: Any, names: Callable[[int], tuple[str, str | None, str, str | None]], count: int) -> Any:
    """A function that makes `count` layers of a kind of cell, whose weights have the given names."""

    def make(weights: Weights, gradients: Weights) -> list[Any]:
        made = []
        for layer in range(count):
            w_i, b_i, w_h, b_h = names(layer)
            made.append(kind(Linear(weights, gradients, w_i, b_i), Linear(weights, gradients, w_h, b_h)))
        return made

    return make


def of_pytorch(layer: int) -> tuple[str, str, str, str]:
    """The names of the weights in `nn.RNN`, `nn.GRU` and `nn.LSTM`."""
    w_i, b_i, w_h, b_h = (f"recurrent.{part}_l{layer}" for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
    return w_i, b_i, w_h, b_h


def difference(network: torch.nn.Module, oracle: Oracle, x_BT: torch.Tensor, y_BT: torch.Tensor, states: Any) -> float:
    """The largest difference in logits, loss and gradients between a float64 network and its oracle."""
    network.zero_grad()
    logits = network(x_BT).logits
    loss = F.cross_entropy(logits.flatten(0, 1), y_BT[:, -logits.shape[1] :].flatten())
    loss.backward()
    theirs, their_loss = oracle.run(x_BT.numpy(), y_BT.numpy(), states)
    gaps = [np.abs(logits.detach().numpy() - theirs).max(), abs(loss.item() - their_loss)]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gaps.append(np.abs(parameter.grad.numpy() - oracle.gradients[name.removeprefix("network.")]).max())
    return float(max(gaps))


def main() -> None:
    from charlm.models import recurrent

    torch.manual_seed(0)
    V, B, T, H, L = 11, 4, 24, 16, 2
    x, y = torch.randint(V, (2, B, T))
    found = {}
    for kind, states in ((RNN, 1), (GRU, 1), (LSTM, 2)):
        network = getattr(recurrent, kind.__name__)(V, 6, H, L).double()
        oracle = Oracle(numpy_weights(network), layers(kind, of_pytorch, L))
        zeros = [tuple(np.zeros((B, H)) for _ in range(states)) for _ in range(L)]
        found[kind.__name__] = difference(network, oracle, x, y, zeros)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
