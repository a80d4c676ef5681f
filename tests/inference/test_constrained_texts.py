"""Texts of a model that keep to a constraint, and the searches of `LanguageModel`."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re

import pytest
import torch

from charlm.errors import UsageError
from charlm.inference.language_model import LanguageModel
from charlm.models.recurrent import GRU
from charlm.text.vocab import Vocab
from tests.helpers import of_extra
from tests.inference.conftest import CHARS
from tests.inference.test_decoding import lively


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(GRU(len(CHARS), 8, 16).eval(), Vocab(CHARS), {"lowercase": False})


@pytest.fixture
def needs_library() -> None:
    of_extra("constrain", "outlines_core")


PATTERNS = [r"[a-z]+ [a-z]+\.", r"\d{3}-\d{4}", r"(yes|no|maybe) ?(not)?", r"[^a-z]{2,8}", r"é(世|!!)"]


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches_the_pattern_and_is_the_one_of_its_seed(model: LanguageModel, pattern: str) -> None:
    found = list(model.samples("a", 40, 12, seed=1, regex=pattern, temperature=1.5, top_p=0.9, logprobs=True))
    assert len({sample.text for sample in found}) > 1
    for sample in found:
        assert re.fullmatch(pattern, sample.text), sample.text
        assert len(sample.text) == 12 or sample.stop_reason == "complete"
    for sample in found[::13]:
        options = {"seed": sample.seed, "regex": pattern, "temperature": 1.5, "top_p": 0.9}
        assert model.generate("a", 12, **options) == sample.text
        assert next(model.samples("a", 1, 12, logprobs=True, **options)) == sample
    greedy = model.generate("a", 12, greedy=True, regex=pattern)
    assert re.fullmatch(pattern, greedy)


@pytest.mark.usefixtures("needs_library")
def test_json_keeps_to_its_schema(model: LanguageModel) -> None:
    properties = {"name": {"type": "string", "maxLength": 9}, "old": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "old"]}
    for sample in model.samples("", 20, 60, seed=1, json_schema=schema, temperature=2.0):
        value = json.loads(sample.text)
        assert set(value) == {"name", "old"} and len(value["name"]) <= 9 and type(value["old"]) is bool


def test_characters_of_a_set(model: LanguageModel) -> None:
    assert set(model.generate("xyz", 200, charset="aé 世", seed=1)) == set("aé 世")
    lower = LanguageModel(model.network, model.vocab, {"lowercase": True})
    assert set(lower.generate("xyz", 200, charset="AB", seed=1)) == set("ab")


@pytest.mark.usefixtures("needs_library")
def test_a_set_and_a_pattern_together(model: LanguageModel) -> None:
    for sample in model.samples("", 20, 8, charset="abc.", regex=r"[a-z]+\.", seed=1):
        assert re.fullmatch(r"[abc]+\.", sample.text)


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"regex": "a", "json_schema": {"type": "null"}}, "regex and a JSON schema both say"),
        ({"regex": "[a-z]+", "stop": "e"}, "stop would end a text before it matches"),
        ({"json_schema": {"type": "null"}, "stop_at": "sentence"}, "stop_at would end a text before it matches"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"regex": r"\d{30}", "length": 20}, "length=20 is too short for any match: the shortest needs 30"),
        ({"regex": "X+"}, "regex='X.' matches nothing that the model may write"),
        ({"regex": "a(b"}, "regex='a.b' is not a regular expression"),
        ({"charset": "a€"}, "charset has what the model never saw.*EURO SIGN"),
        ({"charset": "ab", "regex": "c+"}, "regex='c.' matches nothing that the model may write"),
        ({"json_schema": {"type": "animal"}}, "json_schema "),
        ({"json_schema": {"enum": [math.nan]}}, "json_schema is no JSON"),
        ({"json_schema": {"enum": [{1, 2}]}}, "json_schema is no JSON"),
    ],
)
def test_constraints_that_cannot_be_kept_to(model: LanguageModel, options: dict[str, object], named: str) -> None:
    for write in (model.stream, model.samples, model.beams):
        with pytest.raises(UsageError, match=named):
            write("a", **options)


@pytest.fixture(scope="module")
def toy() -> LanguageModel:
    return LanguageModel(lively(GRU(5, 4, 6)), Vocab(" abcd"), {"lowercase": False})


def logprob(toy: LanguageModel, prompt: str, text: str) -> float:
    return -sum(score.nats for score in toy.score_each(prompt + text)[-len(text) :])


def test_beams_find_the_most_probable_texts(toy: LanguageModel) -> None:
    every = {"".join(text): logprob(toy, "ab", "".join(text)) for text in itertools.product(" abcd", repeat=4)}
    best = sorted(every, key=lambda text: -every[text])
    found = list(toy.beams("ab", 6, 4, width=125))
    assert [sample.text for sample in found] == best[:6]
    for sample in found:
        assert sample.logprob == pytest.approx(every[sample.text]) and sample.seed is None
        assert sum(sample.logprobs) == pytest.approx(sample.logprob) and sample.stop_reason == "length"
    done: list[int] = []
    assert next(toy.beams("ab", 1, 40, width=1, progress=done.append)).text == toy.generate("ab", 40, greedy=True)
    assert done == [1] * 40
    assert next(toy.beams("ab", 1, 40, width=1)).text == toy.generate("ab", 40, greedy=True)


def test_beams_stop_and_keep_to_constraints(toy: LanguageModel) -> None:
    (found,) = toy.beams("ab", 1, 4, width=125, charset="ac")
    every = {"".join(text): logprob(toy, "ab", "".join(text)) for text in itertools.product("ac", repeat=4)}
    assert found.text == max(every, key=lambda text: every[text])
    stopped = list(toy.beams(["ab", "c"], 5, 6, width=200, stop="d"))
    assert [sample.prompt for sample in stopped] == ["ab"] * 5 + ["c"] * 5
    for prompt in ("ab", "c"):
        mine = [sample for sample in stopped if sample.prompt == prompt]
        assert len({sample.text for sample in mine}) == 5
        assert [sample.logprob for sample in mine] == sorted((sample.logprob for sample in mine), reverse=True)
    for sample in stopped:
        assert "d" not in sample.text and sample.stop_reason == ("length" if len(sample.text) == 6 else "stop")
        if sample.text:
            assert sample.logprob == pytest.approx(logprob(toy, sample.prompt, sample.text))


def test_endings_of_a_word(toy: LanguageModel) -> None:
    def probability(ending: str) -> float:
        return math.exp(logprob(toy, "ca b", ending + " "))

    endings = ["".join(text) for n in range(5) for text in itertools.product("abcd", repeat=n)]
    best = sorted(endings, key=lambda ending: -probability(ending))[:5]
    found = toy.complete("ca b", 5, max_length=4)
    assert [ending.text for ending in found] == best
    assert [ending.probability for ending in found] == pytest.approx([probability(text) for text in best])
    assert [ending.word for ending in found] == ["b" + text for text in best]
    assert toy.complete("ca b", 2, max_length=4) == found[:2]
    assert [ending.word for ending in toy.complete("a ca b", 5)] == ["b" + e.text for e in toy.complete("a ca b", 5)]
    assert [ending.word for ending in toy.complete("ca ", 3)] == [ending.text for ending in toy.complete("ca ", 3)]


def test_completion_reads_new_weights() -> None:
    toy = LanguageModel(lively(GRU(5, 4, 6)), Vocab(" abcd"), {"lowercase": False})
    before = toy.complete("ab", 3), toy.candidates("ab", 3)
    toy.network.head.weight.data.mul_(-1)  # which PyTorch does not count as a change
    fresh = LanguageModel(toy.network, toy.vocab, toy.normalisation)
    after = toy.complete("ab", 3), toy.candidates("ab", 3)
    assert after == (fresh.complete("ab", 3), fresh.candidates("ab", 3)) != before


def test_a_model_that_has_written_can_be_pickled(toy: LanguageModel) -> None:
    before = toy.complete("ab", 3), toy.generate("ab", 20, seed=1)
    copied = pickle.loads(pickle.dumps(toy))
    assert (copied.complete("ab", 3), copied.generate("ab", 20, seed=1)) == before


@pytest.mark.usefixtures("needs_library")
def test_beams_of_a_pattern_are_complete(model: LanguageModel) -> None:
    found = list(model.beams("a", 3, 12, width=20, regex="(yes|no|maybe)"))
    assert {sample.text for sample in found} == {"yes", "no", "maybe"}
    assert {sample.stop_reason for sample in found} == {"complete"}


@pytest.mark.usefixtures("needs_library")
def test_a_schema_as_text(model: LanguageModel) -> None:
    assert model.generate("a", 9, json_schema='{"const": 12}') == "12"


def test_fillings_of_a_gap(toy: LanguageModel) -> None:
    middles = ["".join(text) for n in range(4) for text in itertools.product(" abcd", repeat=n)]
    every = {middle: logprob(toy, "a", middle + "cab") for middle in middles}
    found = toy.infill("a___cab", 8, max_length=3, width=125)
    assert [filling.text for filling in found] == sorted(every, key=lambda middle: -every[middle])[:8]
    assert [filling.logprob for filling in found] == pytest.approx([every[filling.text] for filling in found])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.infill("abc"), "must have one gap, written ___"),
        (lambda m: m.infill("a___b___c"), "must have one gap"),
        (lambda m: m.infill("a___"), "must go on after the gap"),
        (lambda m: m.infill("a___€"), "U\\+20AC"),
        (lambda m: m.complete("€"), "U\\+20AC"),
        (lambda m: m.complete("a", 0), "n=0 must be at least 1"),
        (lambda m: m.beams("a", 3, width=2), "width=2 must be at least the 3 texts"),
        (lambda m: m.beams("a", temperature=1.0), "temperature is not an option"),
        (lambda m: m.beams("a", seed=1), "seed is not an option"),
        (lambda m: m.beams([]), "prompts=.. must have at least one text"),
    ],
)
def test_searches_that_cannot_be(toy: LanguageModel, call: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        call(toy)
