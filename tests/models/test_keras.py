"""The Keras-style networks compared with Keras 3, and their parameter counts with those that the lesson prints."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from charlm.checkpoint.building import build_network
from charlm.models.lesson.keras import LSTM, SimpleRNN
from charlm.models.lesson.loops import KerasLoop
from charlm.models.windowed import Windowed
from tests.helpers import model_spec, of_extra

os.environ["KERAS_BACKEND"] = "torch"

# Keras's tensors do not support NumPy 2's copy keyword yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

V, B, T, E, H = 11, 3, 8, 6, 5


@pytest.fixture(scope="module")
def keras() -> Any:
    return of_extra("keras", "keras")


@pytest.fixture(autouse=True)
def same_initial_weights() -> None:
    torch.manual_seed(0)


def counts(network: torch.nn.Module) -> list[int]:
    groups = {"embedding": 0, "recurrent": 0, "head": 0}
    for name, parameter in network.named_parameters():
        groups[name.removeprefix("network.").split(".")[0]] += parameter.numel()
    return list(groups.values())


@pytest.mark.parametrize("name", ["keras_rnn", "keras_seq_rnn"])
def test_the_published_parameter_counts(name: str) -> None:
    network = build_network(model_spec(name), 86)
    assert counts(network) == [3_612, 76_544, 22_102]
    assert sum(p.numel() for p in network.parameters()) == 102_258


@pytest.mark.parametrize("name", ["keras_rnn", "keras_seq_rnn"])
def test_keras_counts_the_same(keras: Any, name: str) -> None:
    every_step = model_spec(name)["window"] is None
    dense = keras.layers.Dense(86, activation="softmax")
    model = keras.Sequential(
        [
            keras.layers.Embedding(86, 42),
            keras.layers.SimpleRNN(256, activation="relu", return_sequences=every_step),
            keras.layers.TimeDistributed(dense) if every_step else dense,
        ]
    )
    model.build((None, 8))
    assert model.count_params() == 102_258


def sequential(keras: Any, recurrent: list[Any], *, batch_norm: bool = False, one_hot: bool = False) -> Any:
    first = [] if one_hot else [keras.layers.Embedding(V, E)]
    norm = [keras.layers.BatchNormalization()] if batch_norm else []
    model = keras.Sequential([*first, *norm, *recurrent])
    model.build((B, T, V) if one_hot else (B, T))
    return model


def give(layer: Any, *arrays: Tensor) -> None:
    layer.set_weights([array.detach().numpy() for array in arrays])


def copy(network: Any, model: Any) -> None:
    """Copy the network's weights to Keras's layers, which store them transposed."""
    cells = iter(network.recurrent.cells)
    dense = iter([part for part in (network.dense, network.head) if part is not None])
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "Embedding":
            give(layer, network.embedding.weight)
        elif kind == "BatchNormalization":
            norm = network.norm
            give(layer, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        elif kind in ("SimpleRNN", "LSTM"):
            cell = next(cells)
            give(layer, cell.weight_ih.t(), cell.weight_hh.t(), cell.bias_ih)
        elif kind in ("Dense", "TimeDistributed"):
            part = next(dense)
            give(layer, part.weight.t(), part.bias)


def shaken(network: torch.nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in [*network.parameters(), *(b for b in network.buffers() if b.dtype.is_floating_point)]:
            tensor += 0.3 * torch.rand_like(tensor)
    return network.eval()


def ids() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def probabilities(network: Any, x: Tensor) -> np.ndarray:
    return network(x)[0].softmax(-1).detach().numpy()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("every_step", [True, False])
def test_simple_rnn_gives_kerass_outputs(keras: Any, activation: str, every_step: bool) -> None:
    network = shaken(SimpleRNN(V, activation, embedding_size=E, hidden_size=H))
    dense = keras.layers.Dense(V, activation="softmax")
    recurrent = keras.layers.SimpleRNN(H, activation=activation, return_sequences=every_step)
    model = sequential(keras, [recurrent, keras.layers.TimeDistributed(dense) if every_step else dense])
    copy(network, model)
    expected = model.predict(ids().numpy(), verbose=0)
    ours = probabilities(network if every_step else Windowed(network, T), ids())
    np.testing.assert_allclose(ours if every_step else ours[:, 0], expected, atol=1e-5)


def test_one_hot_inputs_give_kerass_outputs(keras: Any) -> None:
    network = shaken(SimpleRNN(V, embedding_size=None, hidden_size=H))
    layers = [
        keras.layers.SimpleRNN(H, activation="relu", return_sequences=True),
        keras.layers.TimeDistributed(keras.layers.Dense(V, activation="softmax")),
    ]
    model = sequential(keras, layers, one_hot=True)
    copy(network, model)
    expected = model.predict(np.eye(V, dtype="float32")[ids().numpy()], verbose=0)
    np.testing.assert_allclose(probabilities(network, ids()), expected, atol=1e-5)


def test_the_stateful_lstm_gives_kerass_outputs_batch_after_batch(keras: Any) -> None:
    network = shaken(LSTM(V, embedding_size=E, hidden_size=H, batch_norm=True))
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(B, T)),
            keras.layers.Embedding(V, E),
            keras.layers.BatchNormalization(),
            keras.layers.LSTM(H, return_sequences=True, stateful=True),
            keras.layers.TimeDistributed(keras.layers.Dense(V, activation="softmax")),
        ]
    )
    copy(network, model)
    state = None
    for _ in range(3):
        logits, state, _ = network(ids(), state)
        expected = model.predict(ids().numpy(), verbose=0, batch_size=B)
        np.testing.assert_allclose(logits.softmax(-1).detach().numpy(), expected, atol=1e-5)


def test_the_deep_writer_gives_kerass_outputs(keras: Any) -> None:
    options = {"embedding_size": E, "hidden_size": H, "dense_size": 7}
    network = shaken(build_network({**model_spec("writer"), **options}, V))
    layers = keras.layers
    recurrent = []
    for _ in range(2):
        recurrent += [layers.LSTM(H, return_sequences=True), layers.Dropout(0.2)]
    dense = [
        layers.TimeDistributed(layers.Dense(7, activation="relu")),
        layers.Dropout(0.2),
        layers.TimeDistributed(layers.Dense(V, activation="softmax")),
    ]
    model = sequential(keras, [*recurrent, *dense], batch_norm=True)
    copy(network, model)
    np.testing.assert_allclose(probabilities(network, ids()), model.predict(ids().numpy(), verbose=0), atol=1e-5)


def test_batch_normalisation_learns_as_kerass_does(keras: Any) -> None:
    network = LSTM(V, embedding_size=E, hidden_size=H, batch_norm=True)
    with torch.no_grad():
        network.embedding.weight.mul_(20)
    layer = keras.layers.BatchNormalization()
    e = network.embedding(ids()).detach()
    expected = layer(e, training=True).detach()
    torch.testing.assert_close(network.norm(e.flatten(0, 1)).view_as(e), expected, atol=1e-5, rtol=0)
    mean, variance = (np.asarray(w) for w in layer.get_weights()[2:])
    np.testing.assert_allclose(network.norm.running_mean, mean, atol=1e-5)
    # In the running variance, PyTorch divides by n - 1 and Keras by n. 0.99 of both is the initial value, 1.
    n = B * T
    np.testing.assert_allclose((network.norm.running_var - 0.99) * (n - 1) / n + 0.99, variance, atol=1e-5)


def test_a_single_character_is_normalised_by_the_running_statistics() -> None:
    network = shaken(LSTM(V, embedding_size=E, hidden_size=H, batch_norm=True))
    x = torch.tensor([[3]])
    expected = network(x)[0]
    before = network.norm.running_mean.clone()
    torch.testing.assert_close(network.train()(x)[0], expected)
    assert torch.equal(network.norm.running_mean, before)


@pytest.mark.parametrize(("window", "activation"), [(3, "tanh"), (8, "relu"), (None, "relu")])
def test_the_functional_models_give_kerass_outputs(keras: Any, window: int | None, activation: str) -> None:
    own = window is not None
    network = shaken(KerasLoop(V, E, H, window, own, activation))
    length = window or T
    layers = keras.layers
    inputs = [keras.Input((1,)) for _ in range(length)]
    shared = layers.Embedding(V, E)
    embeddings = [layers.Embedding(V, E) if own else shared for _ in range(length)]
    e = [layers.Flatten()(table(x)) for table, x in zip(embeddings, inputs, strict=True)]
    dense_in, dense_hidden = layers.Dense(H, activation="relu"), layers.Dense(H, activation=activation)
    dense_out = layers.Dense(V, activation="softmax")
    if own:
        hidden, outs = dense_in(e[0]), []
        for c in e[1:]:
            hidden = layers.add([dense_in(c), dense_hidden(hidden)])
        model = keras.Model(inputs, dense_out(hidden))
    else:
        zeros = keras.Input((E,))
        hidden, outs = dense_in(zeros), []
        for c in e:
            hidden = layers.add([dense_in(c), dense_hidden(hidden)])
            outs.append(dense_out(hidden))
        model = keras.Model([zeros, *inputs], outs)
    tables = network.embedding.weight.view(-1, V, E)
    for table, weight in zip(embeddings if own else [shared], tables, strict=True):
        give(table, weight)
    for layer, part in ((dense_in, network.input), (dense_hidden, network.hidden), (dense_out, network.head)):
        give(layer, part.weight.t(), part.bias)
    x = ids()[:, :length]
    columns = [x[:, t : t + 1].numpy() for t in range(length)]
    if own:
        expected = model.predict(columns, verbose=0)[:, None]
    else:
        expected = np.stack(model.predict([np.zeros((B, E), "float32"), *columns], verbose=0), 1)
    np.testing.assert_allclose(probabilities(Windowed(network, window) if window else network, x), expected, atol=1e-5)


def test_initial_weights_are_distributed_as_kerass(keras: Any) -> None:
    torch.manual_seed(0)
    ours = SimpleRNN(86)
    assert torch.equal(ours.recurrent.cells[0].weight_hh, torch.eye(256))
    model = keras.Sequential(
        [keras.layers.Embedding(86, 42), keras.layers.SimpleRNN(256), keras.layers.Dense(86, activation="softmax")]
    )
    model.build((None, 8))
    embedding, kernel, _, bias, dense, dense_bias = model.get_weights()
    pairs = {
        "embedding": (ours.embedding.weight, embedding),
        "kernel": (ours.recurrent.cells[0].weight_ih, kernel),
        "dense": (ours.head.weight, dense),
    }
    for name, (mine, theirs) in pairs.items():
        assert mine.std().item() == pytest.approx(theirs.std(), rel=0.05), name
        assert mine.abs().max().item() == pytest.approx(np.abs(theirs).max(), rel=0.02), name
    assert not bias.any() and not dense_bias.any()
    assert not ours.head.bias.any() and not ours.recurrent.cells[0].bias_ih.any()
    lstm = LSTM(86)
    layer = keras.layers.LSTM(256)
    layer.build((None, 8, 42))
    np.testing.assert_array_equal(lstm.recurrent.cells[0].bias_ih.detach(), layer.get_weights()[2])
    w = lstm.recurrent.cells[0].weight_hh
    torch.testing.assert_close(w.t() @ w, torch.eye(256), atol=1e-5, rtol=0)
