"""Evaluate trained models: from checkpoints and options to figures."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm.checkpoint.paths import StrPath, find_checkpoint
from charlm.errors import UsageError
from charlm.inference.combining import average as averaged
from charlm.inference.combining import load_ensemble
from charlm.inference.evaluation import Evaluation
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.language_model import LanguageModel, load
from charlm.inference.losses import Protocol, check_text, losses_of
from charlm.inference.methods import Methods, choose_methods
from charlm.inference.observer import NOBODY, Observer, nothing
from charlm.run.held_out import HeldOut
from charlm.text.corpus import Corpus
from charlm.text.sources import read
from charlm.text.vocab import normalise


@dataclass(frozen=True, repr=False)
class Evaluated:
    """One model's figures. `model` has the network with its methods, `methods` what there is to say about them."""

    name: str
    text: str
    options: EvaluationOptions
    evaluation: Evaluation
    methods: Methods
    model: LanguageModel
    held_out: HeldOut
    seconds: float
    combined: bool = False  # of several checkpoints

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values for JSON."""
        return {
            "model": self.name,
            "text": self.text,
            **self.evaluation.as_dict(),
            "methods": self.methods.model_dump(exclude_none=True),
            "seconds": round(self.seconds, 2),
        }

    def __repr__(self) -> str:
        found = self.evaluation
        return f"<Evaluated: {self.name} on the {self.text}, {found.losses.protocol.name}: {found.nats:.4f} nats/char>"

    @property
    def group(self) -> str:
        """The same for models that differ only in their seed."""
        config = {name: value for name, value in self.model.config.items() if name not in ("seed", "resume", "logger")}
        return json.dumps([self.text, config], sort_keys=True, default=str)


@dataclass(frozen=True)
class Entry:
    """A model to be evaluated: its name in tables and messages, its checkpoints, and how to open it."""

    name: str
    checkpoints: list[Path]
    open: Callable[[], LanguageModel]


def find_models(paths: Sequence[StrPath], ensemble: Sequence[StrPath], average: Sequence[StrPath]) -> list[Entry]:
    """What is to be evaluated: each of `paths` (without any, the newest run), and two combinations of models.

    Of several paths, those that are files, but no checkpoints, are left out: ``sweeps/…/*`` has some.
    """
    if len(paths) > 1:
        paths = [path for path in paths if not Path(path).is_file() or Path(path).suffix == ".ckpt"] or paths
    found = [Entry(short(path), [Path(path)], functools.partial(load, path)) for path in paths]
    for kind, several, function in (("ensemble", ensemble, load_ensemble), ("average", average, averaged)):
        if len(several) == 1:
            raise UsageError(f"--{kind} needs two models or more, after one another")
        if several:
            name = f"{kind} of {', '.join(map(short, several))}"
            found.append(Entry(name, list(map(Path, several)), functools.partial(function, several)))
    return found or find_models([find_checkpoint()], (), ())


def short(path: StrPath) -> str:
    """The run folder of a checkpoint in its ``checkpoints/best.ckpt``, else the path as it is."""
    where = Path(path)
    return str(where.parent.parent if where.parts[-2:] == ("checkpoints", "best.ckpt") else where)


def evaluate_all(
    models: Sequence[Entry],
    options: EvaluationOptions,
    observer: Observer,
    before: Callable[[HeldOut], object] = nothing,
) -> list[Evaluated]:
    """The figures of every model that can be evaluated, the lowest loss first.

    Of several runs, one that cannot is left out with a warning. `before` is called with each model's text: it raises
    UsageError for what would fail later. Raises UsageError if no model can be evaluated.
    """
    Protocol.parse(options.protocol)
    found, refused = [], []
    for entry in models:
        observer.notify(entry.name)
        combined = len(entry.checkpoints) > 1
        try:
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                model = entry.open()
            for warning in raised:
                observer.warn(str(warning.message))
            one = evaluate(model, entry.name, options, observer, before)
            found.append(dataclasses.replace(one, combined=combined))
        except UsageError as error:
            if combined:
                raise
            refused.append((entry.name, error))
    if not found:
        raise refused[0][1]
    for name, reason in refused:
        observer.warn(f"{name} is left out: {reason}")
    return sorted(found, key=lambda one: one.evaluation.nats)


def evaluate(
    model: LanguageModel,
    name: str,
    options: EvaluationOptions,
    observer: Observer = NOBODY,
    before: Callable[[HeldOut], object] = nothing,
) -> Evaluated:
    """The figures of `model` on the text that `options` name. `name` is that of the model in messages.

    `before` is as in `evaluate_all`. Raises UsageError for what cannot be evaluated.
    """
    protocol, held_out = Protocol.parse(options.protocol), HeldOut(model, name)
    before(held_out)
    if options.text is None:
        text, about = held_out(options.split), f"{options.split} split of {model.corpus.get('name', 'its text')}"
    else:
        corpus = read_own(options.text, options.encoding, "--text")
        text, about = normalise(corpus.text, **model.normalisation), corpus.source
    check_text(model.vocab, text, protocol)  # before settings are chosen, which may take minutes
    methods = choose_methods(model.network, model.vocab, options, held_out, observer)
    network = methods.apply(model.network, model.vocab, held_out)
    observer.notify(name)
    started = time.perf_counter()
    losses = losses_of(network, model.vocab, text, protocol, observer.progress)
    seconds = time.perf_counter() - started
    adapted = LanguageModel(network, model.vocab, model.normalisation, model.config, model.corpus, model.progress)
    return Evaluated(name, about, options, Evaluation(losses), methods, adapted, held_out, seconds)


def read_own(path: str, encoding: str, option: str) -> Corpus:
    """The text that `option` of the command line names."""
    try:
        return read(path, encoding, option)
    except UsageError as error:
        raise UsageError(str(error).replace("data.encoding=", "--encoding ")) from None


def over_seeds(found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the loss over models that differ only in their seed; nothing without any."""
    groups: dict[str, list[Evaluated]] = {}
    for one in (one for one in found if not one.combined):
        groups.setdefault(one.group, []).append(one)
    rows = []
    for members in groups.values():
        losses = [one.evaluation.nats for one in members]
        if len({one.model.config.get("seed") for one in members}) == len(members) > 1:
            rows.append(
                {
                    "models": [one.name for one in members],
                    "seeds": [one.model.config.get("seed") for one in members],
                    "mean_nats_per_character": statistics.fmean(losses),
                    "standard_deviation": statistics.stdev(losses),
                }
            )
    return sorted(rows, key=lambda row: row["mean_nats_per_character"])
