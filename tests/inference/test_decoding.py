"""Decoding and `LanguageModel`, compared with brute force on small networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.checkpoint.building import build_network
from charlm.errors import UsageError
from charlm.inference.decoding import Decoding
from charlm.inference.language_model import LanguageModel
from charlm.inference.steps.steps import TorchSteps
from charlm.inference.writing import Writer
from charlm.models.network import Network, Output
from charlm.models.recurrent import GRU
from charlm.models.windowed import Windowed
from charlm.text.vocab import Vocab
from tests.helpers import MODELS, model_spec

LETTERS = "\n !abcdefghijklmnopqrstuvwxyzé"


class Fixed(Network):
    """Gives the same logits after every character, and records the shape of each input."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x_BT: Tensor, state: Tensor | None = None) -> Output:
        self.shapes.append(tuple(x_BT.shape))
        state = self.initial_state(len(x_BT)) if state is None else state
        logits = self.logits.expand(*x_BT.shape, -1)
        return Output(logits, state, logits)

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 1)


class Adder(Network):
    """Predicts the sum of all ids so far, modulo the vocabulary, so that an id lost or read twice shows."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.vocab_size = vocab_size

    def forward(self, x_BT: Tensor, state: Tensor | None = None) -> Output:
        state = self.initial_state(len(x_BT)) if state is None else state
        sums_BT = state + (x_BT + 1).cumsum(1)
        hidden = F.one_hot(sums_BT % self.vocab_size, self.vocab_size)
        return Output(self.scale * hidden, sums_BT[:, -1:], hidden)

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 1, dtype=torch.int64)


def lively(network: Network) -> Network:
    """Set large random weights, so that the most likely character changes from step to step, without near ties."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network.eval()


@pytest.fixture
def model() -> LanguageModel:
    vocab = Vocab(LETTERS)
    return LanguageModel(lively(GRU(len(vocab), 8, 16)), vocab, {"lowercase": False})


@pytest.fixture
def unk_model() -> LanguageModel:
    vocab = Vocab(LETTERS, pad=True, unk=True)
    return LanguageModel(lively(GRU(len(vocab), 8, 16)), vocab, {"lowercase": False})


def generate(
    network: Network, prompt: list[int], length: int, *, temperature: float = 1.0, seed: int = 0, first_id: int = 0
) -> Iterator[int]:
    """Ids that continue `prompt`, one after the other."""
    steps, ids = TorchSteps(network), np.array(prompt)
    decoding = Decoding(temperature=temperature)
    writer = Writer(steps, [(ids, *steps.read(ids))], decoding, [seed], length, first_id=first_id)
    while writer.written < length:
        yield int(writer.draw()[0])


@torch.inference_mode()
def greedy_by_brute_force(network: Network, prompt: list[int], length: int, first_id: int = 0) -> list[int]:
    text = list(prompt)
    for _ in range(length):
        logits = network(torch.tensor([text])).logits
        text.append(first_id + int(logits[0, -1, first_id:].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("family", MODELS)
def test_greedy_is_the_argmax_of_feeding_the_whole_text_again_each_step(family: str) -> None:
    network = lively(build_network(model_spec(family), 12))
    made = set()
    for prompt in ([3], [8, 1], [7, 5, 2], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]):  # shorter and longer than a window
        expected = greedy_by_brute_force(network, prompt, 30, first_id=2)
        assert list(generate(network, prompt, 30, temperature=0, first_id=2)) == expected
        made.update(expected)
    assert len(made) > 1


def test_every_character_is_read_exactly_once() -> None:
    network = Adder(13)
    made = list(generate(network, [5, 1, 7], 40, temperature=0))
    assert made == greedy_by_brute_force(network, [5, 1, 7], 40)
    assert made[:3] == [16 % 13, (16 + 4) % 13, (16 + 4 + 8) % 13]


def test_after_the_prompt_the_network_reads_one_character_a_step() -> None:
    network = Fixed([0.0, 1.0, 2.0])
    assert len(list(generate(network, [0, 1, 2, 1], 6, seed=0))) == 6
    assert network.shapes == [(1, 4)] + [(1, 1)] * 5


def test_a_character_is_there_before_the_next_one_is_computed() -> None:
    network = Fixed([0.0, 1.0, 2.0])
    made = generate(network, [0, 1], 6, seed=0)
    next(made)
    assert network.shapes == [(1, 2)]
    next(made)
    assert network.shapes == [(1, 2), (1, 1)]


def test_inference_mode_does_not_leak_between_characters() -> None:
    made = generate(Fixed([0.0, 1.0]), [0], 3, seed=0)
    next(made)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_softmax_of_logits_over_temperature(temperature: float) -> None:
    logits, draws = [1.0, 0.0, -1.0, 0.5, 0.2], 4000
    made = torch.tensor(list(generate(Fixed(logits), [0], draws, temperature=temperature, seed=7)))
    expected = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0) * draws
    chi_square = ((made.bincount(minlength=5) - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.47  # the 99.9 % quantile for 4 degrees of freedom


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    network = Fixed([0.0] * 20)
    first, again, other = (list(generate(network, [0], 40, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_sampling_leaves_the_global_generator_alone(model: LanguageModel) -> None:
    before = torch.get_rng_state()
    model.generate("abc", 20, seed=1)
    model.generate("abc", 20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_ids_below_the_first_character_are_never_chosen(temperature: float) -> None:
    network = Fixed([90.0, 80.0, 0.0, 1.0, 2.0])
    made = list(generate(network, [2], 300, temperature=temperature, seed=0, first_id=2))
    assert min(made) >= 2
    assert temperature == 0.0 or set(made) == {2, 3, 4}


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1e9])
def test_the_language_model_never_writes_its_special_symbols(temperature: float) -> None:
    vocab = Vocab("abc", pad=True, unk=True)
    text = LanguageModel(Fixed([90.0, 80.0, 0.0, 1.0, 2.0]), vocab, {}).generate(
        "a", 200, temperature=temperature, seed=0
    )
    assert len(text) == 200
    assert set(text) <= set("abc")


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-300, 5e-324])
def test_a_vanishing_temperature_is_greedy(model: LanguageModel, temperature: float) -> None:
    assert model.generate("abc", 40, temperature=temperature, seed=1) == model.generate("abc", 40, greedy=True)


def test_temperature_zero_is_greedy(model: LanguageModel) -> None:
    made = model.generate("abc", 40, temperature=0)
    assert made == model.generate("abc", 40, greedy=True, temperature=2.0, seed=9)
    expected = greedy_by_brute_force(model.network, model.vocab.encode("abc").tolist(), 40)
    assert made == model.vocab.decode(expected)


def test_a_huge_temperature_is_uniform() -> None:
    made = list(generate(Fixed([-50.0, 0.0, 50.0]), [0], 600, temperature=1e300, seed=2))
    assert all(150 < made.count(choice) < 250 for choice in range(3))


def test_length_zero_writes_nothing(model: LanguageModel) -> None:
    assert list(generate(Fixed([0.0, 1.0]), [0], 0, seed=0)) == []
    assert model.generate("abc", 0) == ""


@pytest.mark.parametrize(
    ("length", "temperature", "named"),
    [
        (-1, 1.0, "length=-1"),
        (5, -1.0, "temperature=-1.0"),
        (5, -1e-9, "temperature=-1e-09"),
        (5, math.nan, "temperature=nan"),
        (5, math.inf, "temperature=inf"),
        (5, -math.inf, "temperature=-inf"),
    ],
)
def test_impossible_lengths_and_temperatures_are_refused_before_the_first_character(
    model: LanguageModel, length: int, temperature: float, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        next(model.stream("abc", length, temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_network_that_diverged_is_a_usage_error_not_a_crash(temperature: float) -> None:
    with pytest.raises(UsageError):
        list(generate(Fixed([0.0, math.nan, 1.0]), [0], 3, temperature=temperature, seed=0))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.generate("a", 5.5), "length=5.5 must be an integer"),
        (lambda m: m.generate("a", True), "length=true must be an integer"),
        (lambda m: m.generate("a", 5, temperature="x"), "temperature='x' must be a number"),
        (lambda m: m.generate("a", 5, unknown="foo"), "unknown='foo' must be 'error' or 'skip'"),
        (lambda m: m.generate(None, 5), "text=null must be text"),
        (lambda m: m.predictions(3), "text=3 must be text"),
        (lambda m: m.score("abc", 0), "chunk=0 must be at least 1"),
    ],
)
def test_values_of_the_wrong_kind_are_named(model: LanguageModel, call: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        call(model)


@pytest.mark.parametrize("seed", [10**30, -(10**30)])
def test_a_seed_that_does_not_fit_is_a_usage_error(model: LanguageModel, seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        model.stream("abc", 5, seed=seed)


def test_streaming_and_generating_agree(model: LanguageModel) -> None:
    pieces = list(model.stream("the ", 50, seed=4))
    assert [len(piece) for piece in pieces] == [1] * 50
    assert "".join(pieces) == model.generate("the ", 50, seed=4)


def test_the_prompt_matters_and_is_not_part_of_the_answer(model: LanguageModel) -> None:
    made = model.generate("abc", 30, seed=4)
    assert len(made) == 30
    assert made != model.generate("xyz", 30, seed=4)


def test_without_a_seed_the_text_is_another_each_time(model: LanguageModel) -> None:
    assert len({model.generate("abc", 60, temperature=3.0) for _ in range(3)}) == 3


@pytest.mark.parametrize(("chars", "start"), [("\n ab", "\n"), (" ab", " "), ("ab", "a")])
def test_an_empty_prompt_starts_after_a_break_if_there_is_one(chars: str, start: str) -> None:
    model = LanguageModel(lively(GRU(len(chars), 8, 16)), Vocab(chars), {})
    assert model.generate("", 40, seed=1) == model.generate(start, 40, seed=1)
    others = {model.generate(c, 40, greedy=True) for c in chars if c != start}
    assert model.generate("", 40, greedy=True) not in others


def test_unknown_prompt_characters_are_named(model: LanguageModel, unk_model: LanguageModel) -> None:
    for one in (model, unk_model):
        with pytest.raises(UsageError, match=r"prompt.*'€' \(U\+20AC EURO SIGN\), '🙂' \(U\+1F642"):
            one.stream("a🙂b€", 5)


def test_unknown_prompt_characters_can_be_skipped(model: LanguageModel, unk_model: LanguageModel) -> None:
    for one in (model, unk_model):
        assert one.generate("a🙂b€", 40, seed=2, unknown="skip") == one.generate("ab", 40, seed=2)


def test_a_prompt_of_unknown_characters_only_counts_as_empty_when_skipped(model: LanguageModel) -> None:
    assert model.generate("🙂€", 40, seed=2, unknown="skip") == model.generate("", 40, seed=2)


def test_a_lower_casing_model_reads_upper_case_prompts(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="'A'"):
        model.generate("ABC É", 5)
    lower = LanguageModel(model.network, model.vocab, {"lowercase": True})
    assert lower.generate("ABC É", 40, seed=3) == model.generate("abc é", 40, seed=3)


@torch.inference_mode()
def score_by_brute_force(model: LanguageModel, text: str) -> float:
    encoded = torch.from_numpy(model.vocab.encode(text)).long()
    losses = [
        F.cross_entropy(model.network(encoded[:end].unsqueeze(0))[0][0, -1], encoded[end]).item()
        for end in range(1, len(encoded))
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("chunk", [1, 2, 7, 47, 4096])
def test_the_score_is_the_mean_cross_entropy_whatever_the_chunk(model: LanguageModel, chunk: int) -> None:
    text = "the quick brown fox\njumps over the lazy dog é!!"
    assert model.score(text, chunk) == pytest.approx(score_by_brute_force(model, text), rel=1e-9)


def test_the_score_of_a_uniform_network_is_the_log_of_its_size() -> None:
    uniform = LanguageModel(Fixed([0.0, 0.0, 0.0, 0.0]), Vocab("abcd"), {})
    assert uniform.score("abcdabcd") == pytest.approx(math.log(4))


def test_the_score_applies_the_normalisation(model: LanguageModel) -> None:
    lower = LanguageModel(model.network, model.vocab, {"lowercase": True})
    assert lower.score("ABC déf") == model.score("abc déf")


def test_unknown_characters_score_as_unk_where_the_model_has_that_symbol(
    model: LanguageModel, unk_model: LanguageModel
) -> None:
    assert unk_model.score("a🙂b") == pytest.approx(score_by_brute_force(unk_model, "a🙂b"))
    assert unk_model.score("a🙂b") == unk_model.score("a€b")
    with pytest.raises(UsageError, match="U\\+1F642"):
        model.score("a🙂b")


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_a_prediction_has_no_score(model: LanguageModel, text: str) -> None:
    with pytest.raises(UsageError, match="two characters"):
        model.score(text)


@pytest.fixture(params=[3, None])
def either(request: pytest.FixtureRequest) -> LanguageModel:
    """A model that predicts after a window of three characters, or one with an output at every step."""
    vocab = Vocab(LETTERS)
    network = GRU(len(vocab), 8, 16)
    network = Windowed(network, request.param) if request.param else network
    return LanguageModel(lively(network), vocab, {"lowercase": False})


def test_window_models_are_scored_at_every_character_too(either: LanguageModel) -> None:
    text = "the quick brown fox\njumps over the lazy dog é!!"
    for chunk in (1, 2, 7, 4096):
        assert either.score(text, chunk) == pytest.approx(score_by_brute_force(either, text), rel=1e-9)


@torch.inference_mode()
def test_predictions_are_the_argmax_after_every_prefix(either: LanguageModel) -> None:
    text = " part of"
    found = either.predictions(text)
    assert [p.read for p in found] == list(text)
    for end, prediction in enumerate(found, 1):
        logits = either.network(torch.from_numpy(either.vocab.encode(text[:end])).long().unsqueeze(0)).logits
        probabilities = logits[0, -1].softmax(-1)
        assert either.vocab.decode([int(probabilities.argmax())]) == prediction.next
        assert prediction.probability == pytest.approx(probabilities.max().item(), rel=1e-9)


def test_predictions_are_never_special_symbols_and_know_the_normalisation(unk_model: LanguageModel) -> None:
    with torch.no_grad():
        unk_model.network.head.bias[:2] = 1e3
    logits = unk_model.network.at_every_step(torch.from_numpy(unk_model.vocab.encode("abc")).long().unsqueeze(0))[0]
    expected = unk_model.vocab.decode((logits[0, :, 2:].argmax(-1) + 2).tolist())
    assert "".join(p.next for p in unk_model.predictions("abc")) == expected
    lower = LanguageModel(unk_model.network, unk_model.vocab, {"lowercase": True})
    assert lower.predictions("ABC") == unk_model.predictions("abc")
    assert unk_model.predictions("") == []


def test_predictions_name_or_skip_unknown_characters(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="U\\+1F642"):
        model.predictions("a🙂b")
    assert model.predictions("a🙂b", "skip") == model.predictions("ab")


def test_the_score_by_position_is_that_of_each_window_on_its_own(either: LanguageModel) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    windows = [text[i : i + 5] for i in range(0, len(text) - 4, 4)]
    expected = [[], [], [], []]
    with torch.inference_mode():
        for window in windows:
            encoded = torch.from_numpy(either.vocab.encode(window)).long()
            for t in range(4):
                logits = either.network(encoded[: t + 1].unsqueeze(0)).logits
                expected[t].append(F.cross_entropy(logits[0, -1], encoded[t + 1]).item())
    means = [sum(losses) / len(losses) for losses in expected]
    for rows in (1, 3, 1024):
        assert either.score_by_position(text, 4, rows) == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize(("text", "length", "named"), [("abc", 3, "more than 3"), ("abc", 0, "length=0")])
def test_windows_that_cannot_be_scored(model: LanguageModel, text: str, length: int, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        model.score_by_position(text, length)
