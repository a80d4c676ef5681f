"""Many texts at once: each is the one that its seed makes alone, whatever else is written beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from charlm.checkpoint.building import build_network
from charlm.errors import UsageError
from charlm.inference.language_model import LanguageModel
from charlm.models.recurrent import GRU
from charlm.text.vocab import Vocab
from tests.helpers import MODELS, model_spec
from tests.inference.test_decoding import LETTERS, Adder, lively

PROMPTS = ["the ", "", "a much longer prompt, with more characters than a window has", "é"]


def one(family: str = "gru", seed: int = 0) -> LanguageModel:
    """A model with the default sizes of its family, in float32, whose texts are not all alike."""
    vocab = Vocab("".join(sorted(set(LETTERS + ",.'"))))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(model_spec(family), len(vocab)).eval()
        for name, parameter in network.named_parameters():
            if network.parameter_group(name) == "head":
                nn.init.normal_(parameter, std=0.3)
    return LanguageModel(network, vocab, {"lowercase": False})


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return one()


@pytest.mark.parametrize("family", MODELS)
def test_each_text_is_the_one_that_its_seed_makes_alone(family: str) -> None:
    model, options = one(family), {"top_p": 0.95, "repetition_penalty": 1.3}
    found = list(model.samples(PROMPTS, 17, 40, seed=5, logprobs=True, **options))
    assert [sample.seed for sample in found] == list(range(5, 5 + 4 * 17))
    assert [sample.prompt for sample in found] == [prompt for prompt in PROMPTS for _ in range(17)]
    assert len({sample.text for sample in found}) > len(found) // 2
    for sample in found[::9]:
        (alone,) = model.samples(sample.prompt, 1, 40, seed=sample.seed, logprobs=True, **options)
        assert alone == sample  # to the last bit of its log-probabilities
        assert model.generate(sample.prompt, 40, seed=sample.seed, **options) == sample.text


def test_texts_that_end_early_do_not_change_the_others(model: LanguageModel) -> None:
    options = {"stop": ["e", "th"], "seed": 3}
    found = list(model.samples("a", 30, 60, **options))
    assert {sample.stop_reason for sample in found} == {"stop", "length"} or len({len(s.text) for s in found}) > 10
    for sample in found:
        assert sample == next(model.samples("a", 1, 60, stop=["e", "th"], seed=sample.seed))
        whole = model.generate("a", 60, seed=sample.seed)
        assert whole.startswith(sample.text) and "e" not in sample.text
        ended = whole[len(sample.text) :].startswith(("e", "th"))
        assert sample.stop_reason == ("stop" if ended else "length")


def test_long_texts_among_others_that_end_early(model: LanguageModel) -> None:
    found = [s for s in model.samples("a", 200, 600, seed=1, stop="qq", temperature=1.0) if len(s.text) > 500]
    assert found and len(found) < 200
    for sample in found[:3]:
        assert model.generate("a", 600, seed=sample.seed, stop="qq", temperature=1.0) == sample.text


def test_progress_reaches_the_whole(model: LanguageModel) -> None:
    done: list[int] = []
    found = list(model.samples(PROMPTS, 5, 30, seed=1, stop="e", progress=done.append))
    assert sum(done) == 4 * 5 * 30 and min(done) >= 0 and any(sample.stop_reason == "stop" for sample in found)


def test_more_texts_than_are_written_side_by_side(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(model.samples(PROMPTS[:2], 7, 10, seed=1, best_of=9))
    monkeypatch.setattr("charlm.inference.text_generator.TOGETHER", 4)
    assert list(model.samples(PROMPTS[:2], 7, 10, seed=1, best_of=9)) == whole
    assert len(whole) == 14


def test_log_probabilities_are_those_of_the_model_and_not_of_the_decoding(model: LanguageModel) -> None:
    (found,) = model.samples("the ", 1, 30, seed=2, logprobs=True, temperature=0.3, top_k=3)
    scores = model.score_each("the " + found.text)[-30:]
    assert [score.character for score in scores] == list(found.text)
    assert found.logprobs == pytest.approx([-score.nats for score in scores], rel=1e-4)
    assert found.logprob == pytest.approx(sum(found.logprobs))
    (cut,) = model.samples("the ", 1, 30, seed=2, logprobs=True, temperature=0.3, top_k=3, stop=found.text[10:14])
    assert cut.logprobs == found.logprobs[: len(cut.text)] and len(cut.text) <= 10
    (without,) = model.samples("the ", 1, 30, seed=2)
    assert without.logprob is None and without.logprobs is None


def test_the_best_are_the_most_probable_per_character(model: LanguageModel) -> None:
    every = list(model.samples("a", 20, 25, seed=9, logprobs=True, stop="e"))
    every.sort(key=lambda sample: -sample.logprob / len(sample.text) if sample.text else math.inf)
    assert list(model.samples("a", 3, 25, seed=9, best_of=20, stop="e")) == every[:3]
    assert list(model.samples("a", 20, 25, seed=9, best_of=20, stop="e")) == every


def test_texts_come_before_all_are_drawn(model: LanguageModel) -> None:
    endless = model.samples("a", 10**15, 3, seed=1)
    assert [next(endless).seed for _ in range(300)] == list(range(1, 301))


def test_greedy_texts_of_several_prompts(model: LanguageModel) -> None:
    found = [sample.text for sample in model.samples(PROMPTS, 1, 30, greedy=True)]
    assert found == [model.generate(prompt, 30, greedy=True) for prompt in PROMPTS]


def test_special_symbols_are_never_written_and_have_their_probability() -> None:
    vocab = Vocab("abc", pad=True, unk=True)
    model = LanguageModel(lively(GRU(5, 4, 8)), vocab, {"lowercase": False})
    (found,) = model.samples("ab?", 1, 200, seed=0, unknown="skip", temperature=5, logprobs=True, repetition_penalty=2)
    assert set(found.text) == set("abc")
    scores = model.score_each("ab" + found.text)[-200:]
    assert found.logprobs == pytest.approx([-score.nats for score in scores])


def test_the_penalty_sees_what_was_written() -> None:
    vocab = Vocab("abc")
    model = LanguageModel(Adder(3), vocab, {"lowercase": False})  # a repeats for ever
    assert len(set(model.generate("abc", 30, greedy=True))) < 3 or "abcabc" in model.generate("abc", 30, greedy=True)
    loop = model.generate("abc", 60, greedy=True)
    free = model.generate("abc", 60, greedy=True, repetition_penalty=1e9, repetition_length=4, repetition_window=50)

    def longest(text: str) -> int:
        return max(n for n in range(60) if any(text.count(text[i : i + n]) > 1 for i in range(60 - n)))

    assert longest(loop) > 20 > longest(free)


def test_other_types_are_the_same_alone_too() -> None:
    model = one()
    model.network.bfloat16()
    for sample in list(model.samples("a", 20, 30, seed=1, logprobs=True))[::5]:
        assert next(model.samples("a", 1, 30, seed=sample.seed, logprobs=True)) == sample


def test_a_network_made_in_inference_mode_writes() -> None:
    with torch.inference_mode():
        network = GRU(len(LETTERS), 8, 16).eval()
    model = LanguageModel(network, Vocab("".join(sorted(LETTERS))), {"lowercase": False})
    assert len(model.generate("abc", 20)) == 20


def test_a_stop_text_is_read_like_the_prompt(model: LanguageModel) -> None:
    lower = LanguageModel(model.network, model.vocab, {"lowercase": True})
    text = lower.generate("THE ", 50, seed=1)
    assert lower.generate("THE ", 50, seed=1, stop=text[20:23].upper()) == text[: text.index(text[20:23])]
    assert model.generate("th", 50, seed=1, stop="h" + model.generate("th", 1, seed=1)) == ""


def test_streaming_and_samples_agree_about_stops(model: LanguageModel) -> None:
    for seed in range(30):
        for options in ({"stop": ["ab", "e\n", "q"]}, {"stop_at": "sentence"}, {"stop_at": "paragraph"}):
            (sample,) = model.samples("a", 1, 80, seed=seed, **options)
            assert "".join(model.stream("a", 80, seed=seed, **options)) == sample.text


def test_another_network_is_used_at_once(model: LanguageModel) -> None:
    changed = LanguageModel(model.network, model.vocab, model.normalisation)
    before = changed.generate("a", 30, greedy=True)
    changed.network = one(seed=1).network
    assert changed.generate("a", 30, greedy=True) == one(seed=1).generate("a", 30, greedy=True) != before


def test_new_weights_are_used_at_once() -> None:
    model = one()
    before = model.generate("a", 30, greedy=True)
    with torch.no_grad():
        model.network.head.bias += torch.linspace(0, 20, len(model.vocab))
    after = model.generate("a", 30, greedy=True)
    assert after != before and set(after) == {model.vocab.chars[-1]}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.samples("a", 0), "n=0 must be at least 1"),
        (lambda m: m.samples("a", 3, best_of=2), "best_of=2 must be at least the 3 texts"),
        (lambda m: m.samples("a", 2, seed=2**63 - 1), "seed=9223372036854775807 "),
        (lambda m: m.samples([], 2), "prompts=.. must have at least one text"),
        (lambda m: m.samples(["a", "€"], 2), "U\\+20AC EURO SIGN"),
        (lambda m: m.samples("a", stop=""), "stop.* must not be empty"),
        (lambda m: m.samples("a", stop=["x", ""]), "stop.* must not be empty"),
        (lambda m: m.samples("a", stop_at="page"), "stop_at='page' must be 'paragraph' or 'sentence'"),
        (lambda m: m.samples("a", topk=3), "topk is not an option"),
        (lambda m: m.stream(["a"]), "text=.'a'. must be text"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(model: LanguageModel, call: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        call(model)
