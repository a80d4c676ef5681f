"""Networks that adapt to what they read, against plain loops: dynamic evaluation, the neural cache, temperatures."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.models import cached
from charlm.models.cached import Cached
from charlm.models.dynamic import EPSILON, Dynamic, mean_squares
from charlm.models.ensemble import Ensemble
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.state import State, detach
from charlm.models.tempered import Tempered
from charlm.models.windowed import Windowed
from tests.families import Tied

V, B, T = 7, 3, 51
SIZES = [[T], [1] * T, [3, 20, 28]]

NETWORKS: dict[str, Callable[[], Network]] = {
    "gru": lambda: GRU(V, 4, 6),
    "lstm": lambda: LSTM(V, 4, 6, layers=2, dropout=0.5),
    "tied": lambda: Tied(V, embedding_size=6, hidden_size=6),
    "ensemble": lambda: Ensemble([GRU(V, 4, 6), RNN(V, 3, 5)]),
    "windowed": lambda: Windowed(GRU(V, 4, 6), 4),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(1)
    return NETWORKS[request.param]().double().eval()


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def in_pieces(network: Network, ids_BT: Tensor, sizes: list[int]) -> Tensor:
    state: State | None = None
    logits = []
    for piece in ids_BT.split(sizes, 1):
        output = network.at_every_step(piece, state)
        state = output.state
        logits.append(output.logits)
    return torch.cat(logits, 1)


def by_hand(network: Network, ids_BT: Tensor, rate: float, segment: int, prior: float, squares: list[Tensor]) -> Tensor:
    """Dynamic evaluation as a loop over segments."""
    network = copy.deepcopy(network)
    weights = list(network.parameters())
    trained = [weight.detach().clone() for weight in weights]
    logits, state = [], None
    for start in range(0, T, segment):
        output, targets = (
            network.at_every_step(ids_BT[:, start : start + segment], state),
            ids_BT[:, start + 1 :][:, :segment],
        )
        state = detach(output.state)
        logits.append(output.logits.detach())
        if targets.shape[1] < segment:
            break
        network.zero_grad()
        F.cross_entropy(output.logits.flatten(0, 1), targets.flatten()).backward()
        roots = [square.sqrt() for square in squares]
        mean = torch.cat([root.flatten() for root in roots]).mean() if roots else 1.0
        with torch.no_grad():
            for i, weight in enumerate(weights):
                pull = torch.minimum(prior * roots[i] / mean, torch.ones(())) if roots else prior
                step = rate * weight.grad / (roots[i] + EPSILON if roots else 1)
                weight += pull * (trained[i] - weight) - step
    return torch.cat(logits, 1)


@pytest.mark.parametrize("prior", [0.0, 0.1])
@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_dynamic_evaluation_is_gradient_descent_after_each_segment(
    network: Network, rule: str, prior: float, ids_BT: Tensor
) -> None:
    before = copy.deepcopy(network.state_dict())
    squares = mean_squares(network, ids_BT, 7) if rule == "rms" else []
    rate = 0.01 if squares else 0.3
    expected = by_hand(network, ids_BT, rate, 7, prior, squares)
    assert not torch.allclose(expected, network.at_every_step(ids_BT).logits)
    dynamic = Dynamic(network, rate, 7, prior, squares)
    for sizes, mode in itertools.product(SIZES, (torch.no_grad, torch.inference_mode, torch.enable_grad)):
        with mode():  # each reading starts with the trained weights
            found = in_pieces(dynamic, ids_BT.clone(), sizes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_squares_are_those_of_the_segments(ids_BT: Tensor) -> None:
    network = NETWORKS["gru"]().double().eval()
    state, sums = None, [torch.zeros_like(weight) for weight in network.parameters()]
    for start in range(0, T - 1, 10):
        logits, state, _ = network(ids_BT[:, start : start + 10], state)
        state = detach(state)
        network.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), ids_BT[:, start + 1 : start + 11].flatten()).backward()
        for total, weight in zip(sums, network.parameters(), strict=True):
            total += weight.grad**2
    for total, square in zip(sums, mean_squares(network, ids_BT, 10), strict=True):
        torch.testing.assert_close(total / 5, square)


def test_another_state_starts_a_segment(ids_BT: Tensor) -> None:
    network = NETWORKS["gru"]().double().eval()
    dynamic = Dynamic(network, 0.5, 7)
    first = dynamic(ids_BT[:, :5])
    other = network(ids_BT[:, 5:9]).state
    again = dynamic(ids_BT[:, 9:15], other)  # nothing has been learned: no segment was complete
    torch.testing.assert_close(again.logits, network(ids_BT[:, 9:15], other).logits)
    assert not first.logits.requires_grad and not again.logits.requires_grad


def test_a_rate_of_nearly_nothing_changes_nothing(network: Network, ids_BT: Tensor) -> None:
    found = Dynamic(network, 1e-300, 5).at_every_step(ids_BT).logits
    torch.testing.assert_close(found, network.at_every_step(ids_BT).logits)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_cache_is_that_of_the_paper(network: Network, sizes: list[int], ids_BT: Tensor) -> None:
    theta, share, size = 1.7, 0.3, 9
    with torch.no_grad():
        logits, _, hidden = network.at_every_step(ids_BT)
        p = logits.softmax(-1)
        for b, t in itertools.product(range(B), range(1, T)):
            weights = torch.zeros(V).double()
            for i in range(max(0, t - size), t):
                weights[ids_BT[b, i + 1]] += math.exp(theta * float(hidden[b, i] @ hidden[b, t]))
            p[b, t] = (1 - share) * p[b, t] + share * weights / weights.sum()
        made = Cached(network, theta, share, size)
        torch.testing.assert_close(in_pieces(made, ids_BT, sizes).exp(), p, rtol=0, atol=1e-12)
        whole = made.at_every_step(ids_BT, made.initial_state(B)).logits
        torch.testing.assert_close(whole.exp(), p, rtol=0, atol=1e-12)


def test_the_cache_reads_some_columns_at_a_time(ids_BT: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Cached(NETWORKS["lstm"]().double().eval(), 0.5, 0.4, 20)
    whole = made(ids_BT).logits
    monkeypatch.setattr(cached, "COLUMNS", 5 * B)
    torch.testing.assert_close(made(ids_BT).logits, whole, rtol=0, atol=1e-12)


def test_a_cache_over_dynamic_evaluation_starts_with_the_trained_weights(ids_BT: Tensor) -> None:
    made = Cached(Dynamic(NETWORKS["gru"]().double().eval(), 0.5, 7), 0.5, 0.4, 20)
    torch.testing.assert_close(made(ids_BT).logits, made(ids_BT).logits, rtol=0, atol=0)


def test_a_temperature_divides_the_logits(network: Network, ids_BT: Tensor) -> None:
    made = Tempered(network, 2.5)
    for sizes in SIZES:
        expected = network.at_every_step(ids_BT).logits / 2.5
        torch.testing.assert_close(in_pieces(made, ids_BT, sizes), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(made(ids_BT).logits, network(ids_BT).logits / 2.5)


@pytest.mark.parametrize("wrap", [lambda n: Dynamic(n, 0.1), lambda n: Cached(n, 0.5, 0.1), lambda n: Tempered(n, 2.0)])
def test_after_a_window_there_is_one_output(wrap: Callable[[Network], Network], ids_BT: Tensor) -> None:
    made = wrap(NETWORKS["windowed"]().double().eval())
    assert made.window == 4 and made(ids_BT).logits.shape == (B, 1, V)
    torch.testing.assert_close(made(ids_BT).logits[:, 0], made.at_every_step(ids_BT).logits[:, -1])
