"""The contract of `charlm.models.network.Network`, for every yaml in conf/model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from charlm.checkpoint.building import build_network
from charlm.checkpoint.format import pack
from charlm.checkpoint.loading import load_checkpoint
from charlm.errors import UsageError
from charlm.models.lesson.from_scratch import ScanReLU, ScanTanh
from charlm.models.lesson.loops import KerasLoop
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.state import State, detach, map_state, select_rows, where_rows
from charlm.models.windowed import Windowed
from charlm.text.vocab import Vocab
from tests.helpers import MODELS, model_spec

V, B, T = 11, 3, 24
IDENTITY = {
    "irnn": "recurrent.weight_hh_l0",
    "keras_loop": "hidden.weight",
    "keras_rnn": "recurrent.cells.0.weight_hh",
    "keras_seq_rnn": "recurrent.cells.0.weight_hh",
    "scan_relu": "W_h",
}


@pytest.fixture(params=MODELS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    spec = model_spec(request.param)
    small = {
        name: value for name, value in {"hidden_size": 16, "dense_size": 16, "layers": 2}.items() if spec.get(name)
    }
    return build_network({**spec, **small}, V).double().eval()


@pytest.fixture
def x_BT() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def tensors(state: State) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda part: found.append(part) or part, state)
    return found


def same_state(ours: State, theirs: State) -> None:
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_yaml_is_found() -> None:
    assert {"rnn", "gru", "lstm", "char3", "keras_rnn", "scan_relu"} <= set(MODELS)


def test_shapes_and_dtypes(network: Network, x_BT: Tensor) -> None:
    logits, state, hidden = network(x_BT)
    assert logits.shape == ((B, T, V) if network.window is None else (B, 1, V))
    assert network.at_every_step(x_BT)[0].shape == (B, T, V)
    assert logits.dtype == torch.float64
    assert hidden.shape[:2] == logits.shape[:2]
    torch.testing.assert_close(network.head(hidden), logits, rtol=0, atol=1e-12)
    everywhere = network.at_every_step(x_BT)
    torch.testing.assert_close(network.head(everywhere.hidden), everywhere.logits, rtol=0, atol=1e-12)
    initial = network.initial_state(B)
    assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(initial)]
    assert all(len(t) == B for t in tensors(initial))
    assert network.window is None or network.window >= 1


def test_no_state_means_the_initial_state(network: Network, x_BT: Tensor) -> None:
    assert torch.equal(network(x_BT)[0], network(x_BT, network.initial_state(B))[0])


@pytest.mark.parametrize("pieces", [[24], [1] * 24, [5, 7, 12], [23, 1], [2, 1, 21]])
def test_in_pieces_equals_whole(network: Network, x_BT: Tensor, pieces: list[int]) -> None:
    whole, last, _ = network.at_every_step(x_BT)
    torch.testing.assert_close(network(x_BT)[0][:, -1], whole[:, -1], rtol=0, atol=1e-12)
    same_state(network(x_BT)[1], last)
    for step in (network.at_every_step, network):
        state, end = network.initial_state(B), 0
        for piece in x_BT.split(pieces, dim=1):
            out, state, _ = step(piece, detach(state))
            end += piece.shape[1]
            torch.testing.assert_close(out, whole[:, end - out.shape[1] : end], rtol=0, atol=1e-12)
        same_state(state, last)


def random_state(network: Network) -> State:
    """A random state, which need not be reachable by reading: numbers, or the ids + 1 of a full window."""
    generator = torch.Generator().manual_seed(2)

    def like(part: Tensor) -> Tensor:
        if part.is_floating_point():
            return torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype)
        return torch.randint(1, V + 1, part.shape, generator=generator)

    return map_state(like, network.initial_state(B))


def read(network: Network, x_BT: Tensor, state: State, pieces: list[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, the last state, and the gradients of the parameters and of the initial state."""
    leaves = [part.requires_grad_() for part in tensors(state) if part.is_floating_point()]
    found = []
    for piece in x_BT.split(pieces, dim=1):
        out, state, _ = network.at_every_step(piece, state)
        found.append(out)
    logits, after = torch.cat(found, 1), tensors(state)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss = (logits * weights.to(logits.dtype)).sum() + sum(part.sin().sum() for part in after if part.requires_grad)
    gradients = torch.autograd.grad(loss, [*network.parameters(), *leaves])
    return logits.detach(), [part.detach() for part in after], list(gradients)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "slope"), [(torch.float64, 1e-12, 1e-10), (torch.float32, 1e-4, 1e-3)], ids=["64", "32"]
)
@pytest.mark.parametrize("start", ["initial", "random"])
def test_logits_state_and_gradients_in_pieces(
    network: Network, x_BT: Tensor, start: str, dtype: torch.dtype, tolerance: float, slope: float
) -> None:
    network.to(dtype)

    def begin() -> State:
        state = network.initial_state(B) if start == "initial" else random_state(network)
        return map_state(lambda part: part.detach().clone(), state)

    logits, after, gradients = read(network, x_BT, begin(), [T])
    for pieces in ([1] * T, [5, 7, 12], [2, 1, 21]):
        found = read(network, x_BT, begin(), pieces)
        torch.testing.assert_close(found[0], logits, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found[1], after, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found[2], gradients, rtol=slope, atol=slope)


def test_rows_are_independent(network: Network, x_BT: Tensor) -> None:
    together, state, _ = network.at_every_step(x_BT)
    for row in range(B):
        alone, alone_state, _ = network.at_every_step(x_BT[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)
        same_state(alone_state, select_rows(state, torch.tensor([row])))


def test_rows_that_have_read_differently_much_go_on_together(network: Network, x_BT: Tensor) -> None:
    read = [network(x_BT[row : row + 1, :length])[1] for row, length in ((0, 1), (1, T))]
    states = [*read, network.initial_state(1)]
    one, two, three = (select_rows(state, torch.tensor([0, 0, 0])) for state in states)
    mixed = where_rows(
        torch.tensor([True, False, False]), one, where_rows(torch.tensor([False, True, False]), two, three)
    )
    together, *_ = network(x_BT[:, :1], mixed)
    for row, state in enumerate(states):
        alone, *_ = network(x_BT[row : row + 1, :1], state)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


def test_no_output_depends_on_a_later_character(network: Network, x_BT: Tensor) -> None:
    before, *_ = network.at_every_step(x_BT)
    for t in range(1, T):
        changed = x_BT.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after, *_ = network.at_every_step(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_the_window_is_as_long_as_it_says(network: Network, x_BT: Tensor) -> None:
    if network.window is None:
        return
    before, *_ = network(x_BT)
    for t in range(T):
        changed = x_BT.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        outside = t < T - network.window
        assert torch.equal(network(changed)[0], before) == outside, t


def test_the_state_matters(network: Network, x_BT: Tensor) -> None:
    _, state, _ = network(x_BT)
    assert not torch.allclose(network(x_BT[:, :2], state)[0], network(x_BT[:, :2])[0])


def test_every_parameter_gets_a_gradient(network: Network, x_BT: Tensor) -> None:
    network.train()(x_BT)[0].logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_every_parameter_belongs_to_a_part(network: Network) -> None:
    parts = {network.parameter_group(name) for name, _ in network.named_parameters()}
    assert {"recurrent", "head"} <= parts <= {"embedding", "recurrent", "head"}


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_it_opens_to_the_same_network(name: str, tmp_path: Path, x_BT: Tensor) -> None:
    spec = model_spec(name)
    vocab = Vocab.build("abcdefghijk")
    network = build_network(spec, len(vocab)).eval()
    entry = pack(spec, vocab, {"lowercase": False}, {}, {})
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "charlm": entry}, tmp_path / "x.ckpt")
    opened = load_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(opened.network(x_BT)[0], network(x_BT)[0])


@pytest.mark.parametrize(("family", "layer"), [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_recurrent_families_are_pytorchs_layers(family: type[Network], layer: type[nn.RNNBase], x_BT: Tensor) -> None:
    torch.manual_seed(0)
    ours = family(V, embedding_size=5, hidden_size=7, layers=2, dropout=0.5).eval()
    theirs = layer(5, 7, 2, batch_first=True)
    theirs.load_state_dict(ours.recurrent.state_dict())
    expected = ours.head(theirs(ours.embedding(x_BT))[0])
    torch.testing.assert_close(ours(x_BT)[0], expected)


def test_a_short_window_takes_the_last_places_embeddings() -> None:
    torch.manual_seed(0)
    network = KerasLoop(V, 4, 6, places=3, own_embeddings=True)
    tables = network.embedding.weight.view(3, V, 4)
    first = torch.relu(network.input(tables[1, 5]))
    expected = network.head(torch.relu(network.input(tables[2, 7])) + torch.relu(network.hidden(first)))
    torch.testing.assert_close(Windowed(network, 3)(torch.tensor([[5, 7]]))[0][0, 0], expected)


@pytest.mark.parametrize(("name", "matrix"), IDENTITY.items())
def test_hidden_matrices_that_start_as_the_identity(name: str, matrix: str) -> None:
    network = build_network(model_spec(name), V)
    network = getattr(network, "network", network)
    assert torch.equal(network.get_parameter(matrix), torch.eye(256))


def test_scan_networks_start_as_the_lesson_says() -> None:
    torch.manual_seed(0)
    spreads = {  # the variances of N(0, 2 / rows) and N(0, 1 / rows)
        ScanReLU: {"W_x": 2 / 85, "W_y": 2 / 256},
        ScanTanh: {"W_x": 1 / 85, "W_h": 1 / 256, "W_y": 1 / 256},
    }
    for family, variances in spreads.items():
        network = family(85, 256)
        for name, parameter in network.named_parameters():
            if name in variances:
                assert parameter.std().item() == pytest.approx(variances[name] ** 0.5, rel=0.03), name
            elif name != "W_h":
                assert not parameter.any(), name


@pytest.mark.parametrize(("family", "gates"), [(RNN, 1), (GRU, 3), (LSTM, 4)])
def test_parameter_counts_follow_from_the_equations(family: type[Network], gates: int) -> None:
    e, h, layers = 5, 7, 3
    inputs = [e, h, h]
    recurrent = sum(gates * (h * i + h * h + 2 * h) for i in inputs)
    network = family(V, embedding_size=e, hidden_size=h, layers=layers)
    assert sum(p.numel() for p in network.parameters()) == V * e + recurrent + h * V + V


def test_dropout_acts_in_training_only(x_BT: Tensor) -> None:
    for options in ({"layers": 2, "dropout": 0.5}, {"output_dropout": 0.5}):
        network = GRU(V, 4, 6, **options)
        assert not torch.equal(network(x_BT)[0], network(x_BT)[0])
        network.eval()
        assert torch.equal(network(x_BT)[0], network(x_BT)[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden_size": 0},
        {"embedding_size": -1},
        {"layers": 1.5},
        {"layers": "2"},
        {"layers": True},
        {"dropout": 1.0, "layers": 2},
        {"dropout": 0.5},
        {"output_dropout": -0.1},
        {"nonsense": 1},
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict) -> None:
    with pytest.raises(UsageError, match=rf"model[:.].*{next(iter(arguments))}"):
        build_network({"_target_": "charlm.models.recurrent.GRU", **arguments}, V)


@pytest.mark.parametrize("family", [RNN, GRU, LSTM])
def test_positional_arguments(family: type[Network]) -> None:
    assert family(20, 8, 16, 2, 0.1, 0.5).training
    with pytest.raises(ValueError, match="one argument too many"):
        family(20, 8, 16, 2, 0.1, 0.5, 9)
