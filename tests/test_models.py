"""The contract of `charlm.models.Network`, over every yaml in conf/model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from charlm.checkpoint import build_network
from charlm.errors import UsageError
from charlm.models import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.state import State, detach, map_state, select_rows

MODELS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf/model").glob("*.yaml"))
V, B, T = 11, 3, 24


@pytest.fixture(params=MODELS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    spec = OmegaConf.to_container(OmegaConf.load(f"conf/model/{request.param}.yaml"))
    return build_network({**spec, "layers": 2}, V).double().eval()


@pytest.fixture
def x_BT() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def tensors(state: State) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda part: found.append(part) or part, state)
    return found


def test_every_yaml_is_found() -> None:
    assert {"rnn", "gru", "lstm"} <= set(MODELS)


def test_shapes_and_dtypes(network: Network, x_BT: Tensor) -> None:
    logits, state = network(x_BT)
    assert logits.shape in {(B, T, V), (B, 1, V)}
    assert logits.dtype == torch.float64
    initial = network.initial_state(B)
    assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(initial)]
    assert all(t.shape[1] == B and not t.any() for t in tensors(initial))
    assert network.context is None or network.context >= 1


def test_no_state_means_the_initial_state(network: Network, x_BT: Tensor) -> None:
    assert torch.equal(network(x_BT)[0], network(x_BT, network.initial_state(B))[0])


@pytest.mark.parametrize("pieces", [[24], [1] * 24, [5, 7, 12], [23, 1]])
def test_in_pieces_equals_whole(network: Network, x_BT: Tensor, pieces: list[int]) -> None:
    whole, last = network(x_BT)
    state, logits = network.initial_state(B), []
    for piece in x_BT.split(pieces, dim=1):
        out, state = network(piece, detach(state))
        logits.append(out)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=0, atol=1e-12)
    for ours, theirs in zip(tensors(state), tensors(last), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_rows_are_independent(network: Network, x_BT: Tensor) -> None:
    together, state = network(x_BT)
    for row in range(B):
        alone, alone_state = network(x_BT[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)
        for ours, theirs in zip(tensors(alone_state), tensors(select_rows(state, torch.tensor([row]))), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_no_output_depends_on_a_later_character(network: Network, x_BT: Tensor) -> None:
    before, _ = network(x_BT)
    for t in range(1, T):
        changed = x_BT.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after, _ = network(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_the_state_matters(network: Network, x_BT: Tensor) -> None:
    _, state = network(x_BT)
    assert not torch.allclose(network(x_BT, state)[0], network(x_BT)[0])


def test_every_parameter_gets_a_gradient(network: Network, x_BT: Tensor) -> None:
    network.train()(x_BT)[0].logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(("family", "layer"), [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_recurrent_families_are_pytorchs_layers(family: type[Network], layer: type[nn.RNNBase], x_BT: Tensor) -> None:
    torch.manual_seed(0)
    ours = family(V, embedding_size=5, hidden_size=7, layers=2, dropout=0.5).eval()
    theirs = layer(5, 7, 2, batch_first=True)
    theirs.load_state_dict(ours.recurrent.state_dict())
    expected = ours.head(theirs(ours.embedding(x_BT))[0])
    torch.testing.assert_close(ours(x_BT)[0], expected)


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
    with pytest.raises(UsageError, match=f"model: .*{next(iter(arguments))}"):
        build_network({"_target_": "charlm.models.recurrent.GRU", **arguments}, V)
