"""Networks in arrays against the networks themselves, and which networks are read in arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from charlm.checkpoint.building import build_network
from charlm.inference.steps import weights
from charlm.inference.steps.arrays import ArraySteps, WindowedArraySteps
from charlm.inference.steps.combined import EnsembleSteps, TemperedSteps
from charlm.inference.steps.families import fastest, steps_of
from charlm.inference.steps.parts import Product, in_blocks
from charlm.inference.steps.steps import SteadySteps, Steps, TorchSteps
from charlm.models.cached import Cached
from charlm.models.dynamic import Dynamic
from charlm.models.ensemble import Ensemble
from charlm.models.lesson import cells, from_scratch, keras, loops
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.tempered import Tempered
from charlm.models.windowed import Windowed
from tests.helpers import MODELS, model_spec

V = 11


def shaken(network: Any, double: bool = True) -> Any:
    """The network in evaluation mode, with weights and statistics that are neither small nor round."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]:
            part += torch.rand(part.shape, generator=generator) * (0.9 if part.dim() == 1 else 2 / part.shape[-1])
    return (network.double() if double else network).eval()


def spec(name: str, **options: Any) -> Network:
    small = {key: value for key, value in {"hidden_size": 20, "embedding_size": 6}.items() if key in model_spec(name)}
    return shaken(build_network({**model_spec(name), **small, **options}, V))


def compare(found: Any, expected: Any, atol: float = 1e-12) -> None:
    """`atol` is that of numbers near 1; some relu networks have larger ones."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol * max(1, np.abs(expected).max()))


def assert_alike(network: Network, atol: float = 1e-12, kind: type | tuple[type, ...] | None = None) -> Steps:
    """Read and step random texts of several lengths in arrays and in PyTorch, with rows that come and go."""
    ours, theirs = fastest(network), TorchSteps(network)
    assert isinstance(ours, kind or (ArraySteps, WindowedArraySteps))
    vocab_size = theirs.read(np.array([0]))[0].shape[1]
    rng = np.random.default_rng(1)
    window = network.window or 1
    mine_of, reference_of = [], []
    for length in sorted({1, 2, 7, 40, window, max(1, window - 1), window + 1}):
        text = rng.integers(0, vocab_size, length)
        (found, mine), (expected, reference) = ours.read(text), theirs.read(text)
        assert found.shape == (1, vocab_size) and found.dtype == expected.dtype
        compare(found, expected, atol)
        mine_of.append(mine)
        reference_of.append(reference)
    mine, reference, rows = ours.join(mine_of), theirs.join(reference_of), len(mine_of)
    for _ in range(2 * window + 3):
        ids = rng.integers(0, vocab_size, rows)
        (found, mine), (expected, reference) = ours.step(ids, mine), theirs.step(ids, reference)
        compare(found, expected, atol)
        chosen = rng.integers(0, rows, rows := int(rng.integers(1, 20)))
        mine, reference = ours.select(mine, chosen), theirs.select(reference, chosen)
    return ours


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_networks_logits(name: str) -> None:
    network = spec(name)
    assert_alike(network)
    assert_alike(network.float(), atol=2e-5)


@pytest.mark.parametrize("family", [RNN, GRU, LSTM, cells.RNN, cells.GRU, cells.LSTM])
@pytest.mark.parametrize(("layers", "hidden", "vocab"), [(2, 20, V), (3, 5, 300), (2, 300, V), (1, 513, 600)])
def test_layers_and_sizes(family: Any, layers: int, hidden: int, vocab: int) -> None:
    assert_alike(shaken(family(vocab, 7, hidden, layers)))


@pytest.mark.parametrize(
    "network",
    [
        RNN(V, 6, 20, identity=True),
        keras.SimpleRNN(V, "tanh", embedding_size=None, hidden_size=20),
        keras.SimpleRNN(V, embedding_size=None, hidden_size=20, batch_norm=True),
        keras.LSTM(V, embedding_size=6, hidden_size=20, layers=2, batch_norm=True, dense_size=300, dropout=0.5),
        GRU(V, 6, 20, 2, dropout=0.5, output_dropout=0.5),
        from_scratch.ScanReLU(V, 270),
        loops.KerasLoop(V, 6, 20),
        loops.KerasLoop(V, 6, 20, activation="tanh"),
        loops.CharLoopConcat(V, 6, 300),
        Windowed(GRU(V, 6, 20, 2), 5),
        Windowed(LSTM(V, 6, 300), 3),
        Windowed(LSTM(V, 6, 20, 2), 1),
        Windowed(from_scratch.ScanTanh(V, 20), 4),
        Windowed(loops.KerasLoop(V, 6, 20, 5, own_embeddings=True, activation="tanh"), 5),
        Windowed(loops.KerasLoop(V, 6, 20, 5, own_embeddings=True), 3),
        Windowed(loops.KerasLoop(V, 6, 300, 5), 7),
        Windowed(loops.KerasLoop(V, 6, 20, 1, own_embeddings=True), 1),
    ],
    ids=lambda network: type(getattr(network, "network", network)).__name__ + str(network.window or ""),
)
def test_options(network: Network) -> None:
    assert_alike(shaken(network))


def test_a_relu_in_pytorchs_own_layer() -> None:
    network = RNN(V, 6, 20)
    network.recurrent = nn.RNN(6, 20, nonlinearity="relu")
    assert_alike(shaken(network))


def test_parametrised_weights() -> None:
    network = cells.GRU(V, 6, 20)
    weight_norm(network.head)
    weight_norm(network.embedding)
    orthogonal(network.recurrent.cells[0], "weight_hh")
    assert_alike(shaken(network), 1e-10)


def test_several_networks_and_a_temperature() -> None:
    ensemble = Ensemble([spec("gru"), spec("lstm"), spec("keras_seq_rnn")])
    found = assert_alike(ensemble.eval(), kind=EnsembleSteps)
    assert all(isinstance(member, ArraySteps) for member in found.members)
    assert_alike(Ensemble([spec("char_loop"), spec("keras_loop")]).eval(), kind=EnsembleSteps)
    assert_alike(Tempered(spec("gru"), 0.7).eval(), kind=TemperedSteps)
    mixed = Ensemble([spec("gru").float(), spec("lstm")]).eval()
    assert_alike(mixed, 1e-5, EnsembleSteps)


def in_numbers(state: Any) -> Any:
    return [in_numbers(part) for part in state] if isinstance(state, tuple) else state.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_states_stay_as_they_are_and_can_be_continued_several_times(name: str) -> None:
    steps = fastest(spec(name))
    rng = np.random.default_rng(2)
    state = steps.join([steps.read(rng.integers(0, V, length))[1] for length in (1, 3, 12)])
    before = in_numbers(state)
    ids = np.array([4, 9, 2])
    logits, after = steps.step(ids, state)
    kept = logits.copy(), in_numbers(after)
    other, _ = steps.step(ids[::-1].copy(), state)
    assert in_numbers(state) == before and in_numbers(after) == kept[1] and (logits == kept[0]).all()
    assert not np.allclose(other, logits)
    again, state_again = steps.step(ids, state)
    assert (again == logits).all() and in_numbers(state_again) == kept[1]
    reordered, _ = steps.step(ids[[2, 0, 0]], steps.select(state, np.array([2, 0, 0])))
    compare(reordered, logits[[2, 0, 0]])
    assert in_numbers(state) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_the_number_of_rows(name: str) -> None:
    steps = steps_of(shaken(build_network(model_spec(name), 86), double=False), 86)
    rng = np.random.default_rng(3)
    texts = rng.integers(0, 86, (35, 12))
    alone = []
    for text_T in texts[:4]:
        _, state = steps.read(text_T[:5])
        for i in text_T[5:]:
            logits, state = steps.step(np.array([i]), state)
        alone.append(logits)
    for rows in (2, 3, 9, 35):
        state = steps.join([steps.read(text_T[:5])[1] for text_T in texts[:rows]])
        for t in range(5, 12):
            logits, state = steps.step(texts[:rows, t].copy(), state)
        for one, row in zip(alone, logits, strict=False):
            assert one.tobytes() == row.tobytes()


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn", "writer"])
def test_a_text_may_be_read_in_any_portions(name: str) -> None:
    network = spec(name)
    ids = np.random.default_rng(4).integers(0, V, 600)  # longer than what goes through a layer together
    steps = SteadySteps(fastest(network), V)
    whole, _ = steps.read(ids)
    _, state = steps.read(ids[:3])
    for i in ids[3:]:
        logits, state = steps.step(np.array([i]), state)
    compare(logits, whole)
    compare(whole, TorchSteps(network).read(ids)[0], 1e-10)


class Mine(GRU):
    pass


def changed(change: Callable[[Any], Any], network: Network | None = None) -> Network:
    network = GRU(V, 6, 20) if network is None else network
    change(network)
    return network.eval()


def partly_training() -> Network:
    network = GRU(V, 6, 20).eval()
    network.dropout.train()
    return network


@pytest.mark.parametrize(
    "network",
    [
        Mine(V, 6, 20).eval(),
        Windowed(Mine(V, 6, 20), 3).eval(),
        GRU(V, 6, 20),  # in training mode
        partly_training(),
        changed(lambda n: n.register_forward_hook(lambda *_: None)),
        changed(lambda n: n.head.register_forward_pre_hook(lambda *_: None)),
        changed(lambda n: n.bfloat16()),
        changed(lambda n: n.head.double()),
        changed(lambda n: setattr(n, "head", nn.Sequential(nn.Linear(20, V)))),
        changed(lambda n: setattr(n, "embedding", nn.Embedding(V, 6, max_norm=1.0))),
        changed(lambda n: setattr(n, "recurrent", nn.GRU(6, 20, batch_first=True))),
        changed(lambda n: setattr(n, "recurrent", nn.LSTM(6, 20, proj_size=5)), LSTM(V, 6, 20)),
        changed(lambda n: setattr(n, "dropout", nn.Tanh())),
        changed(lambda n: setattr(n, "features", n.features)),
        changed(lambda n: weight_norm(n.recurrent, "weight_hh_l0")),
        Windowed(loops.KerasLoop(V, 6, 20), 4).eval(),  # each window would start from its initial state
        loops.KerasLoop(V, 6, 20, 4, own_embeddings=True).eval(),  # made for windows
        Cached(GRU(V, 6, 20), 0.5, 0.1).eval(),
        Dynamic(GRU(V, 6, 20), 0.1).eval(),
        GRU(V, 6, 20).to("meta").eval(),
    ],
    ids=str,
)
def test_what_is_not_known_exactly_is_left_to_pytorch(network: Network) -> None:
    assert isinstance(fastest(network), TorchSteps)


def test_a_member_that_is_not_known_is_left_to_pytorch() -> None:
    network = Ensemble([spec("gru"), shaken(Mine(V, 6, 20))]).eval()
    found = assert_alike(network, kind=EnsembleSteps)
    assert [type(member) for member in found.members] == [ArraySteps, TorchSteps]


def test_a_table_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST_TABLE", V * 60 - 1)
    assert isinstance(fastest(GRU(V, 6, 20).eval()), TorchSteps)
    assert isinstance(fastest(GRU(V, 6, 19).eval()), ArraySteps)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_finite_comes_out_without_warnings(name: str, value: float) -> None:
    network = build_network(model_spec(name), V).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    steps = steps_of(network, V)
    logits, state = steps.read(np.arange(9))
    for _ in range(3):
        logits, state = steps.step(np.array([1]), state)
    assert np.isfinite(logits).all() == bool(network(torch.arange(9)[None])[0].isfinite().all())
    if np.isnan(value):
        assert not np.isfinite(logits).any()


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 600), st.integers(1, 600)),
    rows=st.integers(1, 40),
    biased=st.booleans(),
)
def test_products_in_blocks(sizes: tuple[int, int, int], rows: int, biased: bool) -> None:
    gates, units, inputs = sizes
    rng = np.random.default_rng(0)
    weights, bias, x = rng.normal(size=sizes), rng.normal(size=(gates, units)), rng.normal(size=(rows, inputs))
    found = Product(weights, np.float64, bias if biased else None)(in_blocks(x))
    expected = np.stack([x @ weights[gate].T + biased * bias[gate] for gate in range(gates)])
    assert found.shape == in_blocks(expected).shape
    np.testing.assert_allclose(found, in_blocks(expected), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(
        np.moveaxis(in_blocks(expected), 1, 2).reshape(gates, rows, -1)[..., :units], expected
    )


def test_the_networks_weights_stay_as_they_are() -> None:
    network = spec("writer")
    before = copy.deepcopy(network.state_dict())
    steps = fastest(network)
    _, state = steps.read(np.arange(9))
    steps.step(np.array([3]), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("family", ["gru", "char_loop", "scan_tanh", "keras_loop"])
def test_tables_that_overflow_are_left_to_pytorch(family: str) -> None:
    """In double precision, in which a table is made, nothing overflows, so the outputs would differ."""
    network = build_network(model_spec(family), V).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e30)
    found = fastest(network)
    logits = found.read(np.array([1, 2, 3]))[0]
    expected = network(torch.tensor([[1, 2, 3]])).logits[:, -1].detach().numpy()
    assert np.array_equal(np.isfinite(logits), np.isfinite(expected))
