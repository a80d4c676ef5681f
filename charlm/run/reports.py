"""What else is reported of one evaluated model: compressors beside it, surprising passages, memorised text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from charlm.errors import UsageError
from charlm.inference.anomalies import PER, Anomalies, calibrate, calibrated_by, find_anomalies
from charlm.inference.compressors import LeftOut, compare
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.losses import losses_of
from charlm.inference.memorisation import Memorisation, memorisation, suffix_array_library
from charlm.inference.observer import NOBODY, Observer
from charlm.run.evaluate import Evaluated, over_seeds, read_own
from charlm.run.held_out import HeldOut
from charlm.text.corpus import Corpus
from charlm.text.vocab import normalise


def beside_compressors(one: Evaluated, observer: Observer = NOBODY) -> list[dict[str, Any]]:
    """The model and the compressors on its text, the smallest first. Compressors are primed with the training text.

    A compressor that is left out has ``why`` in place of figures.
    """
    found = one.evaluation
    text = found.losses.text
    size = len(text.encode("utf-8", "surrogatepass"))
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "settings": found.losses.protocol.name,
            "bytes": math.ceil(found.bits * found.characters / 8),
            "nats_per_character": found.nats,
            "bits_per_byte": found.bits_per_byte,
        }
    ]
    left_out = []
    for result in compare(
        one.held_out("train"), text, started=lambda name: observer.notify(f"compressing with {name}")
    ):
        if isinstance(result, LeftOut):
            left_out.append(asdict(result))
            continue
        figures = {
            "bytes": result.primed,
            "nats_per_character": 8 * result.primed * math.log(2) / len(text),
            "bits_per_byte": 8 * result.primed / size,
        }
        rows.append({"name": result.name, "settings": result.settings, **figures, "unprimed": result.unprimed})
    return [*sorted(rows, key=lambda row: row["nats_per_character"]), *left_out]


def surprising(one: Evaluated, rate: float, observer: Observer = NOBODY) -> Anomalies:
    """The passages of the evaluated text that surprise the model more than validation text does.

    `rate` is that of false alarms per 10,000 characters.
    """
    model, losses = one.model, one.evaluation.losses
    observer.notify("reading validation text, to calibrate")
    usual = losses_of(model.network, model.vocab, one.held_out("val"), losses.protocol, observer.progress)
    return find_anomalies(losses.nats, losses.text, calibrate(usual.nats, rate))


def check_surprising(options: EvaluationOptions, rate: float) -> None:
    """Raise UsageError if no surprising passages can be found with `options`."""
    if not rate > 0:
        raise UsageError(f"--anomalies {rate:g}: the rate of false alarms per {PER:,} characters must be more than 0")
    if options.text is None and options.split != "test":
        raise UsageError(
            "--anomalies needs another text than validation text, which calibrates it: --text FILE or --split test"
        )
    if options.protocol == "nanogpt":
        raise UsageError("--anomalies needs every character once: choose --protocol stream")


def check_compressors(options: EvaluationOptions) -> None:
    """Raise UsageError if compressors cannot be put beside a model with `options`."""
    if options.protocol == "nanogpt":
        raise UsageError("--compressors needs every character once: choose --protocol stream")
    if options.text is None and options.split == "train":
        raise UsageError("--compressors are primed with the training text: choose another split to compress")


def sample_for(path: str, encoding: str) -> Corpus:
    """The sample in the file `path`. Raises UsageError where it, or the package that searches it, is not there."""
    suffix_array_library()
    return read_own(path, encoding, "--memorised")


def memorised(one: Evaluated, sample: Corpus) -> Memorisation:
    """How much of `sample` is in the training text."""
    return memorisation(normalise(sample.text, **one.model.normalisation), one.held_out("train"))


def check_texts(held_out: HeldOut, rate: float | None, *, train: bool) -> None:
    """Raise UsageError where validation text is missing or too short to calibrate, or `train` text is missing."""
    if rate is not None:
        calibrated_by(len(held_out("val")) - 1, rate)
    if train:
        held_out("train")


def as_dict(found: Sequence[Evaluated], more: Mapping[str, Any], *, one: bool) -> dict[str, Any]:
    """Everything as plain values for JSON: of one model, with `more` reports, or of several, with means over seeds."""
    if not one:
        return {"models": [each.as_dict() for each in found], "seeds": over_seeds(found)}
    plain = {name: part.as_dict() if hasattr(part, "as_dict") else part for name, part in more.items()}
    return found[0].as_dict() | plain
