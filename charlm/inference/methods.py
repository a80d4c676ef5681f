"""The network of an evaluation: the trained one, or one that also adapts to what it reads.

What these methods need to know (a learning rate, the weight of a cache, a temperature) is chosen on another text than
the one that is reported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field

from charlm.errors import UsageError
from charlm.inference.decoding import NotFinite
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.losses import WINDOW, Protocol, logits_of, losses_of
from charlm.inference.observer import NOBODY, Observer
from charlm.inference.tuning import Settings, descend, fit_temperature
from charlm.models.cached import Cached
from charlm.models.dynamic import Dynamic, mean_squares
from charlm.models.network import Network
from charlm.models.tempered import Tempered
from charlm.options import Options, Positive, Probability
from charlm.text.vocab import Vocab

SLICE = 20_000  # characters on which settings are chosen
RATES = {"sgd": 0.02, "rms": 5e-5}  # where the search begins
CACHE = {"theta": 0.2, "share": 0.05}

Texts = Callable[[str], str]
"""Gives the text of a split; raises UsageError where it is not at hand."""


class DynamicSettings(Options):
    """The arguments of `Dynamic`. For ``rms``, gradients are measured on a split, on `rows` texts side by side."""

    rule: Literal["sgd", "rms"]
    rate: Positive
    segment: Annotated[int, Field(ge=1, le=10_000)]
    prior: Probability = 0.0
    measured_on: Literal["train", "val"] = "train"
    rows: Annotated[int, Field(ge=1, le=10_000)] = 1


class CacheSettings(Options):
    """The arguments of `Cached`."""

    theta: Positive
    share: Probability
    size: Annotated[int, Field(ge=1, le=100_000)] = 2000


class TemperatureSettings(Options):
    """The argument of `Tempered`, and the split that it was fitted on."""

    value: Positive
    fitted_on: str | None = None


class Methods(Options):
    """What is done to a trained network, in this order."""

    dynamic: DynamicSettings | None = None
    cache: CacheSettings | None = None
    temperature: TemperatureSettings | None = None

    def apply(self, network: Network, vocab: Vocab, texts: Texts) -> Network:
        """`network` with these methods. Dynamic evaluation by ``rms`` reads the end of the training text."""
        if self.dynamic is not None:
            network = adapting(network, self.dynamic, vocab, texts)(self.dynamic.rate)
        if self.cache is not None:
            network = Cached(network, self.cache.theta, self.cache.share, self.cache.size)
        if self.temperature is not None:
            network = Tempered(network, self.temperature.value)
        return network

    def describe(self) -> dict[str, str]:
        """Each method's settings as text."""
        shown = self.model_dump(exclude_none=True, exclude_defaults=True, exclude={"dynamic": {"rows", "measured_on"}})
        return {
            name: ", ".join(
                f"{key.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
                for key, value in settings.items()
            )
            for name, settings in shown.items()
        }


def choose_methods(
    network: Network, vocab: Vocab, options: EvaluationOptions, texts: Texts, observer: Observer = NOBODY
) -> Methods:
    """The methods that `options` ask for, with settings that suit other text than the one that is reported.

    Raises UsageError where that text is not at hand.
    """
    tuner = Tuner(vocab, options, texts, observer)
    chosen = Methods(
        dynamic=tuner.dynamic(network) if options.dynamic is not None else None,
        cache=tuner.cache(network) if options.cache else None,
    )
    if options.temperature == 1:
        return chosen
    return chosen.model_copy(update={"temperature": tuner.temperature(chosen.apply(network, vocab, texts))})


class Tuner:
    """Chooses settings on the end of the training text, or of the validation text if training text is reported."""

    def __init__(self, vocab: Vocab, options: EvaluationOptions, texts: Texts, observer: Observer) -> None:
        self.vocab, self.options, self.texts, self.observer = vocab, options, texts, observer
        self.reported = None if options.text is not None else options.split
        self.split: Literal["train", "val"] = "val" if self.reported == "train" else "train"
        protocol = Protocol.parse(options.protocol)
        self.protocol = Protocol.parse(f"windows:{WINDOW}") if protocol.name == "nanogpt" else protocol

    def dynamic(self, network: Network) -> DynamicSettings:
        """Dynamic evaluation. The prior is not tuned: on text that the weights have seen, staying near them pays."""
        options = self.options
        assert options.dynamic is not None
        settings = DynamicSettings(
            rule=options.dynamic,
            rate=options.dynamic_rate or RATES[options.dynamic],
            segment=options.dynamic_segment,
            prior=options.dynamic_prior,
            measured_on=self.split,
            rows=max(1, min(self.protocol.streams, SLICE // (4 * options.dynamic_segment))),
        )
        if options.dynamic_rate is None:
            build = adapting(network, settings, self.vocab, self.texts)
            found = self._search(lambda tried: build(tried["rate"]), {"rate": settings.rate}, "learning rate")
            settings = settings.model_copy(update=found)
        return settings

    def cache(self, network: Network) -> CacheSettings:
        """The neural cache, chosen without dynamic evaluation, which would take many times longer."""

        def settings(tried: Settings) -> CacheSettings:
            return CacheSettings(theta=tried["theta"], share=min(tried["share"], 0.5))

        def build(tried: Settings) -> Network:
            return Methods(cache=settings(tried)).apply(network, self.vocab, self.texts)

        return settings(self._search(build, CACHE, "cache"))

    def temperature(self, network: Network) -> TemperatureSettings:
        """A temperature: the number that was asked for, or the one that suits validation text best.

        Where that is reported, test text, or else training text: it is too easy, so that predictions get too sharp.
        """
        if not isinstance(self.options.temperature, str):
            return TemperatureSettings(value=self.options.temperature)
        where = "val"
        if self.reported == "val":
            try:
                self.texts("test")
                where = "test"
            except UsageError:
                where = "train"
                self.observer.warn(
                    "the temperature is fitted on training text, which the model knows too well, as this run has no "
                    "test split: it is better reported with --split test or --text"
                )
        self.observer.notify("fitting the temperature")
        logits, targets = logits_of(network, self.vocab, self.texts(where)[-SLICE:], self.protocol)
        return TemperatureSettings(value=fit_temperature(logits, targets), fitted_on=where)

    def _search(self, build: Callable[[Settings], Network], start: Settings, what: str) -> Settings:
        """The settings with the lowest loss, found from `start`."""
        text = self.texts(self.split)[-SLICE:]
        self.observer.begin(f"choosing the {what} on {len(text):,} characters of {self.split} text")

        def loss(settings: Settings) -> float:
            values = ", ".join(f"{name} {value:.2g}" for name, value in settings.items())
            self.observer.notify(f"choosing the {what}: {values}")
            try:
                found = losses_of(build(settings), self.vocab, text, self.protocol, self.observer.progress)
            except NotFinite:
                return math.inf
            return float(found.nats.mean())

        return descend(loss, start)


def adapting(network: Network, settings: DynamicSettings, vocab: Vocab, texts: Texts) -> Callable[[float], Network]:
    """Gives `network` with dynamic evaluation at a learning rate."""
    squares = []
    if settings.rule == "rms":
        text = texts(settings.measured_on)[-SLICE:]
        ids = torch.from_numpy(vocab.encode(text, "unk" if vocab.unk else "skip")).long()
        rows = max(1, min(settings.rows, len(ids) // 2))
        ids = ids[: len(ids) // rows * rows].view(rows, -1)
        squares = mean_squares(network, ids.to(next(network.parameters()).device), settings.segment)
    return functools.partial(Dynamic, network, segment=settings.segment, prior=settings.prior, squares=squares)
