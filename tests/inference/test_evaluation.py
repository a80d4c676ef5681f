"""The losses of an evaluation against a loop over characters, and its figures against their definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference import losses
from charlm.inference.evaluation import KINDS, Evaluation, kind_of
from charlm.inference.losses import Losses, Protocol, logits_of, losses_of
from charlm.inference.unknown import unknown_nats
from charlm.models.ensemble import Ensemble
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM
from charlm.models.windowed import Windowed
from charlm.text.vocab import Vocab
from tests.helpers import data_module

CHARS = "".join(sorted("\n abcdeABC1."))
VOCAB = Vocab(CHARS)
TEXT = "".join(np.random.default_rng(0).choice(list(CHARS), 300))


def network(kind: str = "gru", size: int = len(VOCAB)) -> Network:
    torch.manual_seed(1)
    made: dict[str, Any] = {
        "gru": lambda: GRU(size, 4, 6),
        "lstm": lambda: LSTM(size, 4, 6, layers=2),
        "windowed": lambda: Windowed(GRU(size, 4, 6), 3),
        "ensemble": lambda: Ensemble([GRU(size, 4, 6), LSTM(size, 3, 5)]),
    }
    return made[kind]().double().eval()


@torch.no_grad()
def stepwise(net: Network, ids: list[int]) -> list[float]:
    """−ln p of every id after the first, character by character from the initial state."""
    state, nats = net.initial_state(1), []
    for x, y in itertools.pairwise(ids):
        logits, state, _ = net.at_every_step(torch.tensor([[x]]), state)
        nats.append(-float(logits[0, -1].log_softmax(-1)[y]))
    return nats


def encode(text: str, vocab: Vocab = VOCAB) -> list[int]:
    return vocab.encode(text).tolist()


@pytest.mark.parametrize("kind", ["gru", "lstm", "windowed", "ensemble"])
def test_stream_is_every_character_after_the_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = network(kind), []
    monkeypatch.setattr(losses, "BUDGET", 7 * len(VOCAB))  # some columns at a time
    found = losses_of(net, VOCAB, TEXT, Protocol.parse("stream"), lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(found.nats, stepwise(net, encode(TEXT)), rtol=0, atol=1e-12)
    assert found.places.tolist() == list(range(1, len(TEXT)))
    assert found.distances.tolist() == list(range(1, len(TEXT)))
    assert seen[-1] == (len(TEXT) - 1, len(TEXT) - 1) and len(seen) > 10


@pytest.mark.parametrize("rows", [2, 7, 64, 299, 1000])
def test_streams_are_those_of_validation_in_training(rows: int) -> None:
    net = network()
    found = losses_of(net, VOCAB, TEXT, Protocol.parse(f"streams:{rows}"))
    targets = len(TEXT) - 1
    columns = -(-targets // min(rows, targets))
    ids, expected = encode(TEXT), []
    for start in range(0, targets, columns):
        expected += stepwise(net, ids[start : start + columns + 1])
    np.testing.assert_allclose(found.nats, expected, rtol=0, atol=1e-12)
    assert found.distances.tolist() == [i % columns + 1 for i in range(targets)]


def test_the_loss_is_that_of_the_data_module() -> None:
    data = data_module(TEXT, val=200, batch_size=8, bptt=5)
    net, total, count, state = network(size=len(data.vocab)), 0.0, 0, None
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits, state, _ = net(batch.x, state)
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), reduction="sum"))
            count += int((batch.y >= 0).sum())
    found = losses_of(net, data.vocab, TEXT[100:], Protocol.parse(f"streams:{data.rows['val']}"))
    assert (len(found.nats), found.nats.mean()) == (count, pytest.approx(total / count, rel=1e-12))


@pytest.mark.parametrize("length", [1, 10, 299, 300, 10**6])
def test_windows_begin_afresh(length: int) -> None:
    net, ids = network(), encode(TEXT)
    found = losses_of(net, VOCAB, TEXT, Protocol.parse(f"windows:{length}"))
    starts = range(0, len(ids) - 1, length)
    expected = [nats for start in starts for nats in stepwise(net, ids[start : start + length + 1])]
    np.testing.assert_allclose(found.nats, expected, rtol=0, atol=1e-12)


def test_nanogpt_has_batches_of_random_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCHES", 3), ("ROWS", 2), ("WINDOW", 5)):
        monkeypatch.setattr(losses, name, value)
    net, ids = network(), encode(TEXT)
    found = losses_of(net, VOCAB, TEXT, Protocol.parse("nanogpt"))
    assert found.nats.shape == (30,) and found.distances.tolist() == [1, 2, 3, 4, 5] * 6
    starts = found.places.reshape(6, 5)[:, 0] - 1
    assert len(set(starts.tolist())) > 3 and starts.max() < len(TEXT) - 5
    expected = [nats for start in starts for nats in stepwise(net, ids[start : start + 6])]
    np.testing.assert_allclose(found.nats, expected, rtol=0, atol=1e-12)
    again = losses_of(net, VOCAB, TEXT, Protocol.parse("nanogpt"))
    assert again.places.tolist() == found.places.tolist()


def test_nanogpt_can_choose_the_last_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WINDOW", 5)
    found = losses_of(network(), VOCAB, TEXT[:7], Protocol.parse("nanogpt"))
    assert set((found.places - found.distances).tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["", "streams", "streams:0", "windows:-1", "windows:1.5", "stream:2", "nanogpt:3"])
def test_other_protocols_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no protocol"):
        Protocol.parse(name)


def test_logits_are_those_of_the_targets() -> None:
    logits, targets = logits_of(network(), VOCAB, TEXT, Protocol.parse("streams:7"))
    found = losses_of(network(), VOCAB, TEXT, Protocol.parse("streams:7"))
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    np.testing.assert_allclose(nats.numpy(), found.nats, rtol=0, atol=1e-12)


def test_an_unknown_character_costs_its_symbol_and_which_it_is() -> None:
    vocab, text = Vocab(CHARS, unk=True), "abéabéâcé"
    net = network(size=len(vocab))
    found = losses_of(net, vocab, text, Protocol.parse("stream"))
    price = unknown_nats(text, vocab)
    assert price[2] > 13 and price[8] < 2  # the first time, any code point; later, one of those seen
    np.testing.assert_allclose(found.nats, np.array(stepwise(net, encode(text, vocab))) + price[1:], atol=1e-12)
    assert Evaluation(found).unknown == (4, pytest.approx(price.sum()))


def test_without_a_symbol_unknown_characters_are_priced_but_not_read() -> None:
    net, text = network(), "éabéca"
    found = losses_of(net, VOCAB, text, Protocol.parse("stream"))
    price = unknown_nats(text, VOCAB)
    read = stepwise(net, encode("abca"))
    # The first character that is read is predicted from nothing: a guess among all.
    expected = np.array([math.log(len(VOCAB)), read[0], 0, read[1], read[2]]) + price[1:]
    np.testing.assert_allclose(found.nats, expected, atol=1e-12)
    assert found.ranks[[0, 2]].tolist() == [-1, -1] and np.isnan(found.confidences[[0, 2]]).all()
    figures = Evaluation(found).as_dict()
    assert figures["characters"] == 5 and figures["bytes"] == 6 and figures["unknown_characters"] == 1
    alone = losses_of(net, VOCAB, "aéé", Protocol.parse("stream"))
    assert (alone.nats > 0).all() and math.isnan(Evaluation(alone).calibration_error)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "nothing to predict"), ("a", "nothing to predict"), ("жжж", "knows no character of this text")],
)
def test_texts_that_cannot_be_evaluated(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        losses_of(network(), VOCAB, text, Protocol.parse("stream"))


def test_nanogpt_needs_known_text() -> None:
    for text in (TEXT[:100], TEXT + "é"):
        with pytest.raises(UsageError, match="nanogpt needs a text of more than 256"):
            losses_of(network(), VOCAB, text, Protocol.parse("nanogpt"))


def test_a_network_that_diverged_is_refused() -> None:
    net = network()
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(UsageError, match="not finite"):
        losses_of(net, VOCAB, TEXT, Protocol.parse("stream"))


def test_figures_are_those_of_their_definitions() -> None:
    net = network()
    found = losses_of(net, VOCAB, TEXT, Protocol.parse("stream"))
    with torch.no_grad():
        ids = torch.tensor([encode(TEXT)])
        p = net(ids[:, :-1]).logits[0].softmax(-1)
    y = ids[0, 1:]
    figures = Evaluation(found).as_dict()
    assert figures["nats_per_character"] == pytest.approx(float(-p[range(299), y].log().mean()))
    assert figures["bits_per_character"] == pytest.approx(figures["nats_per_character"] / math.log(2))
    assert figures["bits_per_byte"] == pytest.approx(figures["bits_per_character"])  # ASCII
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats_per_character"]))
    assert figures["accuracy"] == pytest.approx(float((p.argmax(-1) == y).double().mean()))
    assert figures["top5_accuracy"] == pytest.approx(float((p.topk(5).indices == y[:, None]).any(-1).double().mean()))
    best = p.max(-1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (best.values >= low) & (best.values < low + 1 / 15)
        if inside.any():
            gap = best.values[inside].mean() - (best.indices == y)[inside].double().mean()
            error += float(inside.double().mean() * gap.abs())
    assert figures["expected_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_bytes_are_those_of_utf8() -> None:
    vocab = Vocab("aé日𝄞")
    found = Evaluation(losses_of(network(size=4), vocab, "aé日𝄞a", Protocol.parse("stream")))
    assert (found.characters, found.bytes) == (4, 2 + 3 + 4 + 1)
    assert found.bits_per_byte == pytest.approx(found.bits * 4 / 10)


def test_parts_are_those_of_the_text() -> None:
    found = Evaluation(losses_of(network(), VOCAB, TEXT, Protocol.parse("windows:20")))
    kinds = found.by_kind
    assert sum(kinds[kind].characters for kind in KINDS if kind in kinds) == found.characters
    total = sum(part.characters * part.nats_per_character for kind, part in kinds.items() if kind in KINDS)
    assert total / found.characters == pytest.approx(found.nats)
    assert kinds["digits"].characters == TEXT[1:].count("1")
    starts = [i for i in range(1, len(TEXT)) if TEXT[i].isalpha() and not TEXT[i - 1].isalpha()]
    assert kinds["first letters of words"].characters == len(starts)
    assert kinds["first letters of words"].nats_per_character == pytest.approx(
        found.losses.nats[np.array(starts) - 1].mean()
    )
    distances = found.by_distance
    assert list(distances) == ["1", "2", "3–4", "5–8", "9–16", "17–32"]
    assert [part.characters for part in distances.values()] == [15, 15, 30, 60, 120, 59]
    assert distances["1"].nats_per_character == pytest.approx(found.losses.nats[::20].mean())


@pytest.mark.parametrize(
    ("character", "kind"),
    [("a", "other letters"), ("日", "other letters"), ("\u0301", "other letters"), ("É", "upper case"), ("٣", "digits")]
    + [("\n", "spaces"), ("\u3000", "spaces"), ("!", "punctuation"), ("€", "punctuation"), ("\0", "punctuation")],
)
def test_kinds_of_characters(character: str, kind: str) -> None:
    assert kind_of(character) == kind


def made_up(nats: np.ndarray) -> Evaluation:
    n = len(nats)
    arrays = (np.arange(1, n + 1), nats, np.zeros(n), np.zeros(n, int), np.ones(n), np.ones(n, int))
    return Evaluation(Losses("a" * (n + 1), Protocol.parse("stream"), np.ones(n + 1, bool), *arrays))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        means = np.repeat(rng.normal(1, 0.5, 40), 500)  # correlated over 500 characters
        low, high = made_up(means + rng.exponential(1, 20_000)).interval
        inside += low < 2 < high
    assert inside >= 50


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_the_interval_is_that_of_possible_means(nats: list[float]) -> None:
    low, high = made_up(np.array(nats)).interval
    assert min(nats) - 1e-9 <= low <= high <= max(nats) + 1e-9
    assert (low, high) == made_up(np.array(nats)).interval
