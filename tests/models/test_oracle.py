"""Every recurrent family compared with hand-derived gradients in NumPy, and explicit cells with PyTorch's layers."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charlm.checkpoint.building import build_network
from charlm.models import recurrent
from charlm.models.lesson import cells, loops
from charlm.models.lesson import from_scratch as scans
from tests.helpers import MODELS, ROOT, model_spec
from tests.models import oracle
from tests.models.oracle import Oracle, difference, layers, numpy_weights, of_pytorch

V, B, T, H, E = 11, 4, 8, 16, 6


def of_cells(layer: int) -> tuple[str, str, str, str]:
    return tuple(f"recurrent.cells.{layer}.{part}" for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))


def of_keras(layer: int) -> tuple[str, str, str, None]:
    return (*of_cells(layer)[:3], None)


def of_loop(_: int) -> tuple[str, str, str, str]:
    return "input.weight", "input.bias", "hidden.weight", "hidden.bias"


def relu(i: Any, r: Any) -> oracle.RNN:
    return oracle.RNN(i, r, "relu")


def keras_relu(i: Any, r: Any) -> oracle.KerasLoop:
    return oracle.KerasLoop(i, r, "relu")


def keras_tanh(i: Any, r: Any) -> oracle.KerasLoop:
    return oracle.KerasLoop(i, r, "tanh")


# yaml in conf/model → kind of cell, names of its weights
KINDS = {
    "rnn": (oracle.RNN, of_pytorch),
    "irnn": (oracle.RNN, of_pytorch),
    "char_rnn": (oracle.RNN, of_pytorch),
    "gru": (oracle.GRU, of_pytorch),
    "lstm": (oracle.LSTM, of_pytorch),
    "rnn_cell": (oracle.RNN, of_cells),
    "gru_cell": (oracle.GRU, of_cells),
    "lstm_cell": (oracle.LSTM, of_cells),
    "char3": (oracle.CharLoop, of_loop),
    "char_loop": (oracle.CharLoop, of_loop),
    "char_loop_concat": (oracle.CharLoopConcat, of_loop),
    "keras_loop": (keras_relu, of_loop),
    "keras_char3": (keras_tanh, of_loop),
    "keras_rnn": (relu, of_keras),
    "keras_seq_rnn": (relu, of_keras),
}
# Tested elsewhere: batch normalisation and dense layers in test_keras.py, the scan networks below.
OTHERS = {"keras_lstm", "writer", "scan_relu", "scan_tanh"}


def pair(length: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randint(V, (2, B, length), generator=torch.Generator().manual_seed(1))
    return x, y


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = model_spec(name)
    small = {key: value for key, value in {"embedding_size": E, "hidden_size": H}.items() if spec.get(key)}
    return build_network({**spec, **small, **options}, V).double()


def shake(network: nn.Module) -> nn.Module:
    """Change every parameter, because zero biases and identity matrices would hide mistakes."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def test_every_family_has_its_oracle() -> None:
    assert set(KINDS) | OTHERS == set(MODELS), (
        "add a new model to KINDS here, with its cell in oracle.py, or to OTHERS if other tests check its equations"
    )


@pytest.mark.parametrize(
    ("name", "depth"),
    [(name, depth) for name in KINDS for depth in (1, 2) if depth == 1 or "layers" in model_spec(name)],
)
def test_outputs_and_gradients_agree_with_those_derived_by_hand(name: str, depth: int) -> None:
    kind, names = KINDS[name]
    network = shake(build(name, **({"layers": depth} if depth == 2 else {})))
    x, y = pair(network.window or T)
    last = network.window is not None
    states = 2 if "lstm" in name else 1
    zeros = [tuple(np.zeros((B, H)) for _ in range(states)) for _ in range(depth)]
    if isinstance(getattr(network, "network", network), loops.KerasLoop):
        zeros = [()]
    tables = bool(model_spec(name).get("own_embeddings")) or name == "keras_char3"
    theirs = Oracle(numpy_weights(network), layers(kind, names, depth), last=last, tables=tables)
    assert difference(network, theirs, x, y, zeros) < 1e-12


def test_the_loop_fed_by_zeros_agrees_too() -> None:
    network = shake(build("keras_loop", window=None, places=None, own_embeddings=False))
    x, y = pair(T)
    theirs = Oracle(numpy_weights(network), layers(keras_relu, of_loop, 1))
    bias = theirs.weights["input.bias"]
    start = np.broadcast_to(np.maximum(bias, 0), (B, H))
    logits = network(x).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    theirs.run(x.numpy(), y.numpy(), [(start,)])
    theirs.gradients["input.bias"] += (theirs.before[0][0] * (bias > 0)).sum(0)
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), theirs.gradients[name], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("family", "activation", "biases"), [("ScanReLU", "relu", "b_x"), ("ScanTanh", "tanh", None)])
def test_scan_networks_agree(family: str, activation: str, biases: str | None) -> None:
    torch.manual_seed(0)
    network = shake(getattr(scans, family)(V, H).double())
    x, y = pair(T)
    weights = numpy_weights(network)
    # The oracle multiplies by the transpose; in ScanTanh, W_h is on the left already.
    left = family == "ScanTanh"
    turned = {"W_x": weights["W_x"].T, "W_y": weights["W_y"].T, "W_h": weights["W_h"] if left else weights["W_h"].T}

    def kind(i: Any, r: Any) -> oracle.RNN:
        return oracle.RNN(i, r, activation)

    theirs = Oracle(
        {**weights, **turned},
        layers(kind, lambda _: ("W_x", biases, "W_h", "b_h"), 1),
        embedding=None,
        head=("W_y", "b_y"),
    )
    logits, loss = theirs.run(x.numpy(), y.numpy(), [(np.zeros((B, H)),)])
    ours = network(x).logits
    ours_loss = nn.functional.cross_entropy(ours.flatten(0, 1), y.flatten())
    ours_loss.backward()
    np.testing.assert_allclose(ours.detach().numpy(), logits, atol=1e-12, rtol=0)
    assert ours_loss.item() == pytest.approx(loss, abs=1e-12)
    for name, parameter in network.named_parameters():
        expected = theirs.gradients[name]
        expected = expected.T if name in turned and not (left and name == "W_h") else expected
        np.testing.assert_allclose(parameter.grad.numpy(), expected, atol=1e-12, rtol=0)


def test_the_oracles_gradients_agree_with_differences() -> None:
    """The oracle's gradients compared with finite differences of its own loss."""
    rng = np.random.default_rng(0)
    for kind, gates, parts in ((oracle.RNN, 1, 1), (oracle.GRU, 3, 1), (oracle.LSTM, 4, 2)):
        shapes = {"i": (gates * 3, 2), "bi": (gates * 3,), "h": (gates * 3, 3), "bh": (gates * 3,)}
        shapes |= {"embedding.weight": (V, 2), "head.weight": (V, 3), "head.bias": (V,)}
        weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        x, y = (rng.integers(V, size=(2, 5)) for _ in range(2))
        made = layers(kind, lambda _: ("i", "bi", "h", "bh"), 1)

        def loss(w: dict[str, np.ndarray], made: Any = made, x: Any = x, y: Any = y, parts: int = parts) -> Oracle:
            run = Oracle(w, made)
            run.value = run.run(x, y, [tuple(np.zeros((2, 3)) for _ in range(parts))])[1]
            return run

        gradients = loss(weights).gradients
        for name, w in weights.items():
            for _ in range(3):
                place = tuple(rng.integers(size) for size in w.shape)
                up, down = ({n: v.copy() for n, v in weights.items()} for _ in range(2))
                up[name][place] += 1e-6
                down[name][place] -= 1e-6
                slope = (loss(up).value - loss(down).value) / 2e-6
                assert gradients[name][place] == pytest.approx(slope, abs=1e-8)


def test_the_rnn_agrees_with_a_scan_in_plain_python() -> None:
    torch.manual_seed(0)
    network = scans.ScanTanh(V, 7).double()
    ids = torch.randint(V, (12,)).tolist()
    states = oracle.plain_rnn(ids, network.W_x.tolist(), network.W_h.tolist(), network.b_h.tolist())
    expected, _ = network.features(torch.tensor([ids]), network.initial_state(1))
    torch.testing.assert_close(torch.tensor(states, dtype=torch.float64), expected[:, 0])


def test_both_scans_are_a_cumulative_sum() -> None:
    for scan in (oracle.scan, scans.scan):
        assert scan(operator.add, 0, range(5)) == [0, 1, 3, 6, 10]


CELLS = [(cells.RNNCell, nn.RNNCell), (cells.GRUCell, nn.GRUCell), (cells.LSTMCell, nn.LSTMCell)]


@pytest.mark.parametrize(("ours", "theirs"), CELLS)
def test_explicit_cells_are_pytorchs_cells(ours: type[cells.Cell], theirs: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    theirs_cell, our_cell = theirs(5, 7).double(), ours(5, 7).double()
    our_cell.load_state_dict(theirs_cell.state_dict())
    x = torch.randn(3, 5, dtype=torch.float64)
    state = tuple(torch.randn(3, 7, dtype=torch.float64) for _ in range(ours.states))
    expected = theirs_cell(x, state if ours.states > 1 else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(our_cell(x, state), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    sum(part.sum() for part in expected).backward()
    sum(part.sum() for part in our_cell(x, state)).backward()
    for a, b in zip(our_cell.parameters(), theirs_cell.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_explicit_networks_are_the_built_in_ones(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = (getattr(module, name)(V, E, H, 2).double() for module in (cells, recurrent))
    theirs.load_state_dict({of_their_name(key): value for key, value in ours.state_dict().items()})
    x, _ = pair(T)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=1e-13)


def of_their_name(key: str) -> str:
    """recurrent.cells.1.weight_ih → recurrent.weight_ih_l1"""
    if not key.startswith("recurrent.cells."):
        return key
    _, _, layer, part = key.split(".")
    return f"recurrent.{part}_l{layer}"


def test_the_command_prints_the_differences() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.models.oracle"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"RNN", "GRU", "LSTM"}
    assert all(value < 1e-6 for value in found.values())
