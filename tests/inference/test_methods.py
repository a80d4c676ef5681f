"""Which methods an evaluation uses, and on which text their settings are chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from charlm.errors import OptionError, UsageError
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.losses import Protocol, losses_of
from charlm.inference.methods import Methods, choose_methods
from charlm.inference.observer import Observer
from charlm.inference.tuning import descend, fit_temperature
from charlm.models.cached import Cached
from charlm.models.dynamic import Dynamic
from charlm.models.recurrent import GRU
from charlm.models.tempered import Tempered
from charlm.text.vocab import Vocab

VOCAB = Vocab(" abcde")


def text(seed: int) -> str:
    """Words of two letters, which repeat, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcde"), 2)) for _ in range(4)]
    return " ".join(rng.choice(words, 300))


TEXTS = {"train": text(1), "val": text(2), "test": text(3)}


class Asked:
    """The texts, and which of them were asked for."""

    def __init__(self, **texts: str) -> None:
        self.texts, self.splits = texts, set[str]()

    def __call__(self, split: str) -> str:
        self.splits.add(split)
        if split not in self.texts:
            raise UsageError(f"no {split} split")
        return self.texts[split]


def network() -> GRU:
    torch.manual_seed(0)
    return GRU(len(VOCAB), 4, 8).eval()


def chosen(asked: Asked | None = None, **options: Any) -> Methods:
    return choose_methods(network(), VOCAB, EvaluationOptions(**options), asked or Asked(**TEXTS))


def loss(methods: Methods, split: str = "val") -> float:
    made = methods.apply(network(), VOCAB, Asked(**TEXTS))
    return float(losses_of(made, VOCAB, TEXTS[split], Protocol.parse("stream")).nats.mean())


def test_settings_descend_to_the_lowest_loss() -> None:
    def bowl(settings: dict[str, float]) -> float:
        return (math.log(settings["a"]) - math.log(37)) ** 2 + (math.log(settings["b"]) - math.log(0.003)) ** 2

    found = descend(bowl, {"a": 1.0, "b": 1.0})
    assert abs(math.log(found["a"] / 37)) <= math.log(2) / 4 + 1e-9
    assert abs(math.log(found["b"] / 0.003)) <= math.log(2) / 4 + 1e-9


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_settings_that_diverge_are_left(bad: float) -> None:
    found = descend(lambda settings: bad if settings["rate"] > 0.3 else -settings["rate"], {"rate": 0.01})
    assert 0.2 < found["rate"] <= 0.3


def test_the_fitted_temperature_has_the_lowest_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    for true in (0.3, 1.0, 4.0):
        logits = 3 * torch.randn(4000, 9, generator=rng)
        targets = torch.multinomial((logits / true).softmax(-1), 1, generator=rng)[:, 0]
        found = fit_temperature(logits, targets)
        assert found == pytest.approx(true, rel=0.1)
        losses = [
            float(torch.nn.functional.cross_entropy((logits / t).double(), targets))
            for t in (found * 0.99, found, found * 1.01)
        ]
        assert losses[1] == min(losses)


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_dynamic_evaluation_gains_with_a_rate_from_training_text(rule: str) -> None:
    asked = Asked(**TEXTS)
    methods = chosen(asked, dynamic=rule)
    assert asked.splits == {"train"}
    assert loss(methods) < loss(Methods()) - 0.1
    assert isinstance(methods.apply(network(), VOCAB, asked), Dynamic)


def test_the_cache_gains_with_settings_from_training_text() -> None:
    asked = Asked(**TEXTS)
    methods = chosen(asked, cache=True)
    assert asked.splits == {"train"} and loss(methods) < loss(Methods())
    assert isinstance(methods.apply(network(), VOCAB, asked), Cached)


def test_nothing_is_chosen_on_what_is_reported() -> None:
    for split, other in (("train", {"val"}), ("val", {"test", "train"}), ("test", {"val", "train"})):
        asked = Asked(**TEXTS)
        chosen(asked, split=split, dynamic="sgd", cache=True, temperature="fit", protocol="streams:4")
        assert asked.splits == other


def test_a_rate_that_is_given_needs_no_text() -> None:
    asked = Asked()
    methods = chosen(asked, dynamic="sgd", dynamic_rate=0.1, temperature=2.0)
    assert not asked.splits and methods.dynamic is not None and methods.dynamic.rate == 0.1
    made = methods.apply(network(), VOCAB, asked)
    assert isinstance(made, Tempered) and isinstance(made.network, Dynamic)
    with pytest.raises(UsageError, match="no train split"):
        chosen(asked, dynamic="sgd")


def test_a_temperature_from_training_text_warns() -> None:
    warnings: list[str] = []
    options, asked = EvaluationOptions(temperature="fit"), Asked(train=TEXTS["train"], val=TEXTS["val"])
    methods = choose_methods(network(), VOCAB, options, asked, Observer(warn=warnings.append))
    assert methods.temperature is not None and methods.temperature.fitted_on == "train"
    assert "fitted on training text" in warnings[0]


def test_methods_survive_as_json() -> None:
    methods = chosen(dynamic="rms", cache=True, temperature="fit")
    again = Methods.model_validate_json(methods.model_dump_json(exclude_none=True))
    assert again == methods and loss(again) == loss(methods)
    assert set(methods.describe()) == {"dynamic", "cache", "temperature"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dynamic_rate": 0.1}, "dynamic_rate needs dynamic"),
        ({"dynamic_prior": 0.1}, "dynamic_prior needs dynamic"),
        ({"dynamic": "adam"}, "dynamic='adam' must be 'sgd' or 'rms'"),
        ({"dynamic": "sgd", "dynamic_rate": 0.0}, "dynamic_rate=0.0 must be more than 0"),
        ({"dynamic": "sgd", "protocol": "windows:256"}, "dynamic learns along a text"),
        ({"dynamic": "sgd", "protocol": "nanogpt"}, "dynamic learns along a text"),
        ({"temperature": 0}, "temperature=0 must be a number above 0, or fit"),
        ({"temperature": "fitted"}, "temperature='fitted' must be a number above 0, or fit"),
        ({"split": "validation"}, "split='validation' must be 'train', 'val' or 'test'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError) as error:
        EvaluationOptions(**options)
    assert problem in str(error.value)
