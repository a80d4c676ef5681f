"""What else is reported of one evaluated model: compressors beside it, surprising passages, memorised text."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from charlm.errors import UsageError
from charlm.inference.anomalies import Anomalies, calibrate, find_anomalies
from charlm.inference.compressors import LeftOut, compare
from charlm.inference.evaluation import losses_of
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.memorisation import Memorisation, memorisation
from charlm.inference.observer import NOBODY, Observer
from charlm.inference.report import plain_table
from charlm.run.evaluate import Evaluated
from charlm.text.encodings import AUTO
from charlm.text.sources import read
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


def compressors_table(rows: list[dict[str, Any]]) -> Table:
    """The sizes for the terminal."""
    table = plain_table("compressor", "settings", "bytes", "nats/char", "bits/byte", "alone")
    for row in rows:
        if "why" in row:
            table.add_row(*map(Text, (row["name"], row["why"])))
            continue
        figures = (f"{row['bytes']:,}", f"{row['nats_per_character']:.4f}", f"{row['bits_per_byte']:.4f}")
        alone = f"{row['unprimed']:,}" if "unprimed" in row else ""
        table.add_row(*map(Text, (row["name"], row["settings"], *figures, alone)))
    return table


def surprising(one: Evaluated, rate: float, observer: Observer = NOBODY) -> Anomalies:
    """The passages of the evaluated text that surprise the model more than validation text does.

    `rate` is that of false alarms per 10,000 characters.
    """
    model, losses = one.model, one.evaluation.losses
    observer.notify("reading validation text, to calibrate")
    usual = losses_of(model.network, model.vocab, one.held_out("val"), losses.protocol, observer.progress)
    return find_anomalies(losses.nats, losses.text, calibrate(usual.nats, rate))


def check_surprising(options: EvaluationOptions) -> None:
    """Raise UsageError if no surprising passages can be found with `options`."""
    if options.text is None and options.split != "test":
        raise UsageError(
            "--anomalies needs another text than validation text, which calibrates it: --text FILE or --split test"
        )
    if options.protocol == "nanogpt":
        raise UsageError("--anomalies needs every character once: choose --protocol stream")


def memorised(one: Evaluated, path: str) -> Memorisation:
    """How much of the sample in the file `path` is in the training text."""
    sample = normalise(read(path, AUTO, "--memorised").text, **one.model.normalisation)
    return memorisation(sample, one.held_out("train"))
